-- Where a run's samples come from: checkpoints, seeds, how many of each.
-- param run (default newest): the run
select checkpoint, seed, count(*) as images from samples where run = the_run($run) group by all order by all;
