-- Images and annotated images of every subset of the packed data.
select family, subset, count(*) as images, count(*) / sum(count(*)) over () as share,
    count(*) filter (is_annotated) as annotated
from images where status = 'packed'
group by family, subset order by images desc, family, subset;
