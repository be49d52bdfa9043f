-- Images, annotations and demographics of every subset of the packed data.
select family, subset, count(*) as images, count(*) / sum(count(*)) over () as share,
    count(coalesce(gender, age, skin_group)) as annotated,
    count(*) filter (gender = 'female') / nullif(count(gender), 0) as female,
    count(*) filter (skin_group = 'light') / nullif(count(skin_group), 0) as light,
    count(*) filter (skin_group = 'medium') / nullif(count(skin_group), 0) as medium,
    count(*) filter (skin_group = 'dark') / nullif(count(skin_group), 0) as dark
from images where status = 'packed'
group by family, subset order by images desc, family, subset;
