-- How often two labelling methods agree on an image, and which groups they confuse.
-- param attribute (default skin_group): one of @attributes
-- param source (default generated): one of train, generated
-- param run (default newest): the run whose samples are counted, for source generated
with labels_of_source as (
    from labels_long
    where source = $source and attribute = $attribute and (source <> 'generated' or run = resolve_run($run))
), pairs as (
    select a.method, b.method as other_method, a."group", b."group" as other_group, count(*) as images
    from labels_of_source as a join labels_of_source as b on a.key = b.key and a.method < b.method
    group by all
)
select *, images / sum(images) over (partition by method, other_method) as share
from pairs order by method, other_method, images desc, "group", other_group;
