-- The images of which the labeller that counts is least, or most, sure; where they are, and what they were taken for.
-- param attribute (default gender): one of gender, age, skin_tone
-- param order (default least): one of least, most
-- param source (default generated): one of train, generated
-- param run (default newest): whose samples the generated side is
-- param limit (default 100): at most so many
select confidence.source, confidence.run, confidence.key, coalesce(samples.shard, images.shard) as shard,
    confidence.method, confidence."group", confidence.probability
from confidence join chosen using (attribute)
left join samples on confidence.source = 'generated' and samples.run = confidence.run and samples.key = confidence.key
left join images on confidence.source = 'train' and images.key = confidence.key
where confidence.attribute = $attribute and confidence.source = $source
    and (confidence.source = 'train' or confidence.run = the_run($run))
    and confidence.method in (chosen.method, 'imported')
order by if($order = 'least', 1, -1) * confidence.probability, confidence.key limit $limit::bigint;
