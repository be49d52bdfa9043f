-- How many of the packed images are real and how many are fake, by family.
select target, family, count(*) as images, count(*) / sum(count(*)) over () as share
from images where status = 'packed' group by all order by images desc, target, family;
