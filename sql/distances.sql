-- How far a run's distributions are from the training data's and from equal shares, with 95 % intervals and null floors.
-- param run (default newest): the run
select distances.*, estimate = (select any_value(best) from estimates
        where estimates.run = distances.run and estimates.attribute = distances.attribute) as used
from distances where run = the_run($run) order by "against", attribute, estimate desc, measure;
