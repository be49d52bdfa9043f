-- Similarity of each group's samples to its training images, and their diversity; floors are what real images score.
-- param run (default newest): the run
select quality.* from quality left join vocabulary using (attribute, "group")
where run = resolve_run($run) order by attribute, rank, "group";
