-- The largest difference between groups in how often a detector calls a run's samples fake, with 95 % intervals.
-- `floor` is what the gap exceeds in at most 5 % of cases if all groups have the same rate. As computed by the last `report`.
-- param run (default newest): the run
-- param detector (default all): the detector's name, or all
select detector, run, attribute, correction, rate as gap, low, high, floor, note from rate_estimates
where "group" is null and run = resolve_run($run) and ($detector = 'all' or detector = $detector)
order by detector, attribute_rank(attribute);
