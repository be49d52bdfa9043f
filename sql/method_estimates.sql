-- Shares of a run's groups by every labelling method, raw and corrected; `used` marks the basis of the verdicts.
-- param attribute (default all): one of all, @attributes
-- param run (default newest): the run
select method_estimates.* from method_estimates left join vocabulary using (attribute, "group")
where run = resolve_run($run) and ($attribute = 'all' or attribute = $attribute)
order by attribute, method, estimate desc, rank, "group";
