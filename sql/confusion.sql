-- What the labeller said of training images of each annotated class, as counts and as shares of that class.
-- param attribute (default gender): one of gender, age, skin_tone, skin_group, intersection, intersection_age
-- param method (default counting): one of counting, clip, probe, pixels
select annotated, labelled, count, count / sum(count) over (partition by annotated) as share
from confusion
left join (select "group" as annotated, rank as row from vocabulary where attribute = $attribute) using (annotated)
left join (select "group" as labelled, rank as col from vocabulary where attribute = $attribute) using (labelled)
where attribute = $attribute
    and method = if($method = 'counting', (select method from chosen where attribute = $attribute), $method)
order by row, annotated, col, labelled;
