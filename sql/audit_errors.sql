-- The labeller's labels of the samples that people see as each class, next to those of annotated photographs.
-- param attribute (default gender): one of @attributes
-- param run (default newest): the run
select seen, labelled, faces, share, share_low, share_high, photographs, photographs_share
from audit_confusion
left join (select "group" as seen, rank as seen_rank from vocabulary where attribute = $attribute) using (seen)
left join (select "group" as labelled, rank as labelled_rank from vocabulary where attribute = $attribute) using (labelled)
where run = resolve_run($run) and attribute = $attribute
order by seen_rank, seen, labelled_rank, labelled;
