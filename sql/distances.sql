-- How far a run's distributions are from the training data's and from equal shares, with 95 % intervals and null floors.
-- param run (default newest): the run
from distances where run = the_run($run) order by "against", attribute, measure;
