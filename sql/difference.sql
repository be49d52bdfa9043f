-- Two runs side by side: shares, ratios to each run's training data, and the difference of shares with its 95 % interval.
-- The interval is that of two independent estimates (Newcombe, Stat. Med. 17 (1998) 873-890, method 10, from each
-- estimate's own interval). Both estimates share one correction, so it is rather too wide than too narrow.
-- param other: the run that `run` is compared with
-- param run (default newest): the run
-- param attribute (default all): one of all, @attributes
with pairs as (
    select a.attribute, a."group", vocabulary.rank,
        a.best_estimate = 'audited' and b.best_estimate = 'audited' as is_audited,
        a.best_estimate = 'raw' and b.best_estimate = 'raw' or a.corrected is null or b.corrected is null
            or a.is_shifted or b.is_shifted as is_raw, a, b
    from estimates as a join estimates as b using (attribute, "group")
    left join vocabulary using (attribute, "group")
    where a.run = resolve_run($run) and b.run = resolve_run($other) and ($attribute = 'all' or a.attribute = $attribute)
), shares as (
    select attribute, "group", rank, if(is_audited, 'audited', if(is_raw, 'raw', 'corrected')) as estimate,
        if(is_audited, a.audited, if(is_raw, a.share, a.corrected)) as share,
        if(is_audited, b.audited, if(is_raw, b.share, b.corrected)) as other_share,
        case when is_audited then a.audited_low when not is_raw then a.corrected_low when a.best_estimate = 'raw' then a.best_share_low else a.share_low end as low,
        case when is_audited then a.audited_high when not is_raw then a.corrected_high when a.best_estimate = 'raw' then a.best_share_high else a.share_high end as high,
        case when is_audited then b.audited_low when not is_raw then b.corrected_low when b.best_estimate = 'raw' then b.best_share_low else b.share_low end as other_low,
        case when is_audited then b.audited_high when not is_raw then b.corrected_high when b.best_estimate = 'raw' then b.best_share_high else b.share_high end as other_high,
        a.ratio as ratio, b.ratio as other_ratio, a.verdict as verdict, b.verdict as other_verdict
    from pairs
)
select attribute, "group", estimate, share, low, high, other_share, other_low, other_high, other_share - share as difference,
    difference - sqrt((other_share - other_low) ** 2 + (high - share) ** 2) as difference_low,
    difference + sqrt((other_high - other_share) ** 2 + (share - low) ** 2) as difference_high,
    case when difference_low > 0 then 'more' when difference_high < 0 then 'less' else 'inconclusive' end as difference_verdict,
    ratio, other_ratio, verdict, other_verdict
from shares
order by attribute_rank(attribute), rank, "group";
