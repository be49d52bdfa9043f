-- Over- and under-represented groups, the most first: against the training data, or against equal shares of all groups.
-- param against (default training): one of training, equal
-- param attribute (default all): one of all, gender, age, skin_tone, skin_group, intersection, intersection_age
-- param run (default newest): the run
with found as (
    select *, best_share * count(*) over (partition by attribute) as evenly,
        best_share_low * count(*) over (partition by attribute) as evenly_low,
        best_share_high * count(*) over (partition by attribute) as evenly_high
    from estimates where run = the_run($run) and ($attribute = 'all' or attribute = $attribute)
), measured as (
    select attribute, "group", best_share as share,
        if($against = 'equal', evenly, coalesce(ratio, if(best_share > 0, 'inf'::double, null))) as times, if($against = 'equal', evenly_low, ratio_low) as low,
        if($against = 'equal', evenly_high, coalesce(ratio_high, 'inf')) as high,
        case when $against = 'training' then verdict
             when evenly_low > 1 then 'over' when evenly_high < 1 then 'under' else 'inconclusive' end as verdict,
        if($against = 'training', shifted, null) as beyond_chance
    from found
)
from measured where times is not null and verdict in ('amplified', 'reduced', 'over', 'under')
order by abs(ln(greatest(times, 1e-6))) desc, attribute, "group";
