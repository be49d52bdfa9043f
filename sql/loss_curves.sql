-- Losses, the discriminator's mean outputs and speed over a run, averaged over equal stretches of steps.
-- param run (default newest): the run
-- param points (default 200): how many stretches
select max(step) as step, max(images) as images, max(seconds) as seconds,
    avg(loss_d) as loss_d, avg(loss_g) as loss_g, avg(d_real) as d_real, avg(d_fake) as d_fake,
    avg(images_per_s) as images_per_s, avg(data_wait) as data_wait
from (select *, ntile($points::bigint) over (order by step) as stretch from steps where run = the_run($run))
group by stretch order by step;
