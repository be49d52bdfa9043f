-- The training image that each of a run's first samples is nearest to, by the cosine of their embeddings, the nearest first.
-- param source (default generated): one of generated, train
-- param run (default newest): the run
-- param limit (default 100): at most so many
select key, nearest, similarity, among, count(*) over () as searched,
    median(similarity) over () as median, quantile_cont(similarity, 0.95) over () as highest
from neighbours where run = the_run($run) and source = $source
order by similarity desc, key limit $limit::bigint;
