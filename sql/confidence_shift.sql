-- How sure the classifier or the probe is of a run's samples and of photographs it was not fitted to, and how often unsure.
-- param run (default newest): the run
from confidence_shift where run = resolve_run($run) order by attribute_rank(attribute);
