-- The nearest training image of each of a run's first samples, by the cosine similarity of their embeddings.
-- The most similar pairs come first. With source = train, the nearest other image of the first training images.
-- param source (default generated): one of generated, train
-- param run (default newest): the run
-- param limit (default 100): the maximum number of images
select key, nearest, similarity, images_searched, count(*) over () as neighbours_found,
    median(similarity) over () as similarity_median, quantile_cont(similarity, 0.95) over () as similarity_p95
from neighbours where run = resolve_run($run) and source = $source
order by similarity desc, key limit $limit::bigint;
