-- How one side, or each of them, is distributed over the classes of an attribute.
-- param attribute (default gender): one of gender, age, skin_tone, skin_group, intersection
-- param source (default all): one of all, train, generated, annotated
-- param run (default newest): whose samples the generated side is
select source, "group", count, count / sum(count) over (partition by source) as share
from counts
where attribute = $attribute
    and ($source = 'all' or source = $source)
    and (source <> 'generated' or run = the_run($run))
    and (source <> 'train' or method in (
        select method from counts where attribute = $attribute and source = 'generated' and run = the_run($run)
        union all select method from chosen where not exists (from labels where method = 'imported' and run = the_run($run))))
order by source, rank, "group";
