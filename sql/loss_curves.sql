-- Losses, mean discriminator outputs and throughput of a run, averaged over equal intervals of steps.
-- param run (default newest): the run
-- param points (default 200): the number of intervals
select max(step) as step, max(images) as images, max(seconds) as seconds,
    avg(loss_d) as loss_d, avg(loss_g) as loss_g, avg(d_real) as d_real, avg(d_fake) as d_fake,
    avg(images_per_s) as images_per_s, avg(data_wait) as data_wait
from (select *, ntile($points::bigint) over (order by step) as bucket from steps where run = resolve_run($run))
group by bucket order by step;
