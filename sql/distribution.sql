-- The distribution of training labels, generated labels and annotations over the classes of an attribute.
-- param attribute (default gender): one of @attributes
-- param source (default all): one of all, train, generated, annotated
-- param run (default newest): the run whose samples are counted as generated
with counted as materialized (  -- runs and labellers are looked up for these few rows, not for every face
    from label_counts where attribute = $attribute
)
select source, "group", count, count / sum(count) over (partition by source) as share
from counted
where ($source = 'all' or source = $source)
    and (source <> 'generated' or run = resolve_run($run))
    and (source <> 'train' or is_comparable(resolve_run($run), labeller))
order by source, rank, "group";
