-- How often each detector classifies a run's samples as fake, overall and by group, with Wilson's 95 % interval.
-- Groups are those of the selected labeller. Samples that a detector was trained on are excluded.
-- param run (default newest): the run
-- param detector (default all): the detector's name, or all
select * exclude (rank), held_out_of(detector) as held_out from detection_rates
where run = resolve_run($run) and ($detector = 'all' or detector = $detector)
order by detector, run, attribute_rank(attribute), rank, "group";
