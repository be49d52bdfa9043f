-- Shares of a run's groups, their ratios to the training data with 95 % intervals, and the verdicts.
-- param attribute (default all): one of all, @attributes
-- param run (default newest): the run
select estimates.* from estimates left join vocabulary using (attribute, "group")
where run = resolve_run($run) and ($attribute = 'all' or attribute = $attribute)
order by attribute_rank(attribute), rank, "group";
