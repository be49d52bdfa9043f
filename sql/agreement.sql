-- How often two labellers say the same of an image, and where they differ.
-- param attribute (default skin_group): one of gender, age, skin_tone, skin_group, intersection, intersection_age
-- param source (default generated): one of train, generated
-- param run (default newest): whose samples the generated side is
with mine as (
    from said where source = $source and attribute = $attribute and (source <> 'generated' or run = the_run($run))
), pairs as (
    select a.method as one, b.method as other, a."group" as one_says, b."group" as other_says, count(*) as images
    from mine as a join mine as b on a.key = b.key and a.method < b.method
    group by all
)
select *, images / sum(images) over (partition by one, other) as share
from pairs order by one, other, images desc, one_says, other_says;
