-- Training labels, generated labels and annotations side by side, class by class, absent classes included.
-- param attribute (default gender): one of all, @attributes
-- param run (default newest): the run whose samples are counted as generated
with selected_run as (
    select resolve_run($run) as name
), counted as materialized (
    from label_counts where ($attribute = 'all' or attribute = $attribute)
        and (source <> 'generated' or run = (select name from selected_run))
), sample_labellers as (  -- training labels by any other labeller can't be compared with those of the samples
    select attribute, labeller from counted where source = 'generated'
), all_classes as (
    select attribute, "group", rank, source, count from counted
    where source <> 'train' or (attribute, labeller) in (from sample_labellers)
        or attribute not in (select attribute from sample_labellers)
    union all
    select attribute, "group", rank, null, 0 from vocabulary where $attribute = 'all' or attribute = $attribute
), sides as (
    select attribute, "group", rank,
        coalesce(sum(count) filter (source = 'train'), 0)::bigint as train,
        coalesce(sum(count) filter (source = 'generated'), 0)::bigint as generated,
        coalesce(sum(count) filter (source = 'annotated'), 0)::bigint as annotated
    from all_classes group by all
)
select attribute, "group",
    train, train / nullif(sum(train) over of_attribute, 0) as train_share,
    generated, generated / nullif(sum(generated) over of_attribute, 0) as generated_share,
    annotated, annotated / nullif(sum(annotated) over of_attribute, 0) as annotated_share
from sides window of_attribute as (partition by attribute)
order by attribute_rank(attribute), rank, "group";
