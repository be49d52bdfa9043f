-- How one side, or each of them, is distributed over the classes of an attribute.
-- param attribute (default gender): one of gender, age, skin_tone, skin_group, intersection, intersection_age
-- param source (default all): one of all, train, generated, annotated
-- param run (default newest): whose samples the generated side is
with counted as materialized (  -- before runs and labellers are looked up, which would be done for every face
    from counts where attribute = $attribute
)
select source, "group", count, count / sum(count) over (partition by source) as share
from counted
where ($source = 'all' or source = $source)
    and (source <> 'generated' or run = the_run($run))
    and (source <> 'train' or comparable(the_run($run), labeller))
order by source, rank, "group";
