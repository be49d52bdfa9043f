-- Confidence of the classifier or the probe, and unsure shares, on a run's samples and on held-out photographs.
-- param run (default newest): the run
from confidence_shift where run = resolve_run($run) order by attribute_rank(attribute);
