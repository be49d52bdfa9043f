-- How near the samples of each group are to its training images, from embeddings; floors are what real images score.
-- param run (default newest): the run
select quality.* from quality left join vocabulary using (attribute, "group")
where run = the_run($run) order by attribute, rank, "group";
