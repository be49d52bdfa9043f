-- Training labels, generated labels and annotations side by side, class by class, absent classes included.
-- param attribute (default gender): one of @attributes
-- param run (default newest): the run whose samples are counted as generated
with counted as materialized (  -- runs and labellers are looked up for these few rows, not for every face
    from label_counts where attribute = $attribute
), all_classes as (
    select "group", rank, source, count from counted
    where (source <> 'generated' or run = resolve_run($run))
    and (source <> 'train' or is_comparable(resolve_run($run), labeller))
    union all
    select "group", rank, null, 0 from vocabulary where attribute = $attribute
), sides as (
    select "group", rank,
        coalesce(sum(count) filter (source = 'train'), 0)::bigint as train,
        coalesce(sum(count) filter (source = 'generated'), 0)::bigint as generated,
        coalesce(sum(count) filter (source = 'annotated'), 0)::bigint as annotated
    from all_classes group by all
)
select "group",
    train, train / nullif(sum(train) over (), 0) as train_share,
    generated, generated / nullif(sum(generated) over (), 0) as generated_share,
    annotated, annotated / nullif(sum(annotated) over (), 0) as annotated_share
from sides
order by rank, "group";
