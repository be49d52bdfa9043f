-- The images of one group: their keys, and the shards and files that contain them.
-- param attribute (default gender): one of @attributes
-- param group: the class, as named by the question `distribution`
-- param source (default generated): one of train, generated, annotated
-- param run (default newest): the run whose samples are listed, for source generated
-- param limit (default 100): the maximum number of images
select labels.source, labels.run, labels.key, coalesce(samples.shard, images.shard) as shard,
    coalesce(samples.path, images.path) as path,
    samples.checkpoint, samples.seed, samples.index
from selected_labels as labels
left join samples on source = 'generated' and samples.run = labels.run and samples.key = labels.key
left join images on source <> 'generated' and images.key = labels.key
where attribute = $attribute and "group" = $group and source = $source
    and (source <> 'generated' or labels.run = resolve_run($run))
order by labels.key limit $limit::bigint;
