-- Labels of the training images of each annotated class: counts, and shares of that class.
-- param attribute (default gender): one of @attributes
-- param method (default selected): one of selected, clip, probe, classifier, pixels
select annotated, labelled, count, count / sum(count) over (partition by annotated) as share
from confusion
left join (select "group" as annotated, rank as annotated_rank from vocabulary where attribute = $attribute) using (annotated)
left join (select "group" as labelled, rank as labelled_rank from vocabulary where attribute = $attribute) using (labelled)
where attribute = $attribute
    and method = if($method = 'selected', (select method from selected_method where attribute = $attribute), $method)
order by annotated_rank, annotated, labelled_rank, labelled;
