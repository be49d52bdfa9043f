-- How often each detector calls our own samples fake, all of them and by group, with Wilson's 95 % interval.
-- Groups are the labeller's word; samples that a detector learnt from are left out.
-- param run (default newest): the run
-- param detector (default all): the detector, or all
select * exclude (rank) from detected where run = the_run($run) and ($detector = 'all' or detector = $detector)
order by detector, run, array_position(['all', 'gender', 'age', 'skin_group', 'intersection'], attribute), rank, "group";
