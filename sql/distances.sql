-- Distances of a run's distributions from the training data's and from equal shares, with 95 % intervals and null floors.
-- `used` marks the estimate (raw, corrected) that the verdicts of the attribute are based on.
-- param run (default newest): the run
select distances.*, estimate = (select any_value(best_estimate) from estimates
        where estimates.run = distances.run and estimates.attribute = distances.attribute) as used
from distances where run = resolve_run($run) order by baseline, attribute, estimate desc, measure;
