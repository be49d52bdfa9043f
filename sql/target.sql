-- Real and fake images among the packed images, by family.
select target, family, count(*) as images, count(*) / sum(count(*)) over () as share
from images where status = 'packed' group by all order by images desc, target, family;
