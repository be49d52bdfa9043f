-- What every labeller says of a run's groups, as it is and corrected for its errors, side by side; `used` marks the best.
-- param attribute (default all): one of all, gender, age, skin_tone, skin_group, intersection, intersection_age
-- param run (default newest): the run
select readings.* from readings left join vocabulary using (attribute, "group")
where run = the_run($run) and ($attribute = 'all' or attribute = $attribute)
order by attribute, method, estimate desc, rank, "group";
