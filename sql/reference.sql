-- Shares of a run's groups, compared with those of `report --reference` or, without training images, with equal shares.
-- param attribute (default all): one of all, @attributes
-- param run (default newest): the run
select reference_estimates.* from reference_estimates left join vocabulary using (attribute, "group")
where run = resolve_run($run) and ($attribute = 'all' or attribute = $attribute)
order by attribute_rank(attribute), rank, "group";
