-- The checkpoints and seeds that a run's samples were generated from, and how many of each.
-- param run (default newest): the run
select checkpoint, seed, count(*) as images from samples where run = resolve_run($run) group by all order by all;
