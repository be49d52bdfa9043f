-- A run's training steps, images, seconds, images per second, and share of time spent waiting for data.
-- param run (default newest): the run
select max(step) as steps, max(images) as images, max(seconds) as seconds,
    median(images_per_s) as images_per_s, avg(data_wait) as data_wait
from steps where run = resolve_run($run);
