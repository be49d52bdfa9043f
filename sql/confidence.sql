-- The images that the selected labeller is least (or most) confident about, with their shards, labels and probabilities.
-- param attribute (default gender): one of @labelled
-- param order (default least): one of least, most
-- param source (default generated): one of train, generated
-- param run (default newest): the run whose samples are listed, for source generated
-- param limit (default 100): the maximum number of images
select confidence.source, confidence.run, confidence.key, coalesce(samples.shard, images.shard) as shard,
    confidence.method, confidence."group", confidence.probability
from confidence join selected_method using (attribute)
left join samples on confidence.source = 'generated' and samples.run = confidence.run and samples.key = confidence.key
left join images on confidence.source = 'train' and images.key = confidence.key
where confidence.attribute = $attribute and confidence.source = $source
    and (confidence.source = 'train' or confidence.run = resolve_run($run))
    and confidence.method in (selected_method.method, 'imported')
order by if($order = 'least', 1, -1) * confidence.probability, confidence.key limit $limit::bigint;
