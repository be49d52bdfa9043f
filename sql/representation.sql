-- Over- and under-represented groups, the largest ratio first, relative to the training data or to equal shares.
-- param baseline (default training): one of training, equal
-- param attribute (default all): one of all, @attributes
-- param run (default newest): the run
with run_estimates as (
    select *, best_share * count(*) over (partition by attribute) as equal_ratio,
        best_share_low * count(*) over (partition by attribute) as equal_low,
        best_share_high * count(*) over (partition by attribute) as equal_high
    from estimates where run = resolve_run($run) and ($attribute = 'all' or attribute = $attribute)
), ratios as (
    select attribute, "group", best_share as share,
        if($baseline = 'equal', equal_ratio, coalesce(e.ratio, if(best_share > 0, 'inf'::double, null))) as ratio,
        if($baseline = 'equal', equal_low, ratio_low) as low,
        if($baseline = 'equal', equal_high, coalesce(ratio_high, 'inf')) as high,
        case when $baseline = 'training' then e.verdict
             when equal_low > 1 then 'over' when equal_high < 1 then 'under' else 'inconclusive' end as verdict,
        if($baseline = 'training', e.significant, null) as significant
    from run_estimates as e
)
from ratios where ratio is not null and verdict in ('amplified', 'reduced', 'over', 'under')
order by abs(ln(greatest(ratio, 1e-6))) desc, attribute, "group";
