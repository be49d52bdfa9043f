-- The images behind a cell: keys, and where to find them.
-- param attribute (default gender): one of gender, age, skin_tone, skin_group, intersection, intersection_age
-- param group: the class, as the distribution names it
-- param source (default generated): one of train, generated, annotated
-- param run (default newest): whose samples the generated side is
-- param limit (default 100): at most so many
select classes.source, classes.run, classes.key, coalesce(samples.shard, images.shard) as shard, images.path,
    samples.checkpoint, samples.seed, samples.index
from classes
left join samples on source = 'generated' and samples.run = classes.run and samples.key = classes.key
left join images on source <> 'generated' and images.key = classes.key
where attribute = $attribute and "group" = $group and source = $source
    and (source <> 'generated' or classes.run = the_run($run))
order by classes.key limit $limit::bigint;
