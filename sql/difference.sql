-- Two runs' groups side by side: shares, ratios to what each was shown, and the difference of shares with its 95 % interval.
-- The interval is of two independent estimates (Newcombe, Stat. Med. 17 (1998) 873-890, method 10, with each one's own
-- interval); the correction that both share makes it rather too wide than too narrow.
-- param other: the run that is compared with `run`
-- param run (default newest): the run
-- param attribute (default all): one of all, gender, age, skin_tone, skin_group, intersection, intersection_age
with pairs as (
    select a.attribute, a."group", vocabulary.rank,
        a.best = 'raw' and b.best = 'raw' or a.corrected is null or b.corrected is null as by_labels, a, b
    from estimates as a join estimates as b using (attribute, "group")
    left join vocabulary using (attribute, "group")
    where a.run = the_run($run) and b.run = the_run($other) and ($attribute = 'all' or a.attribute = $attribute)
), shares as (
    select attribute, "group", rank, if(by_labels, 'raw', 'corrected') as estimate,
        if(by_labels, a.share, a.corrected) as share, if(by_labels, b.share, b.corrected) as other_share,
        case when not by_labels then a.corrected_low when a.best = 'raw' then a.best_share_low else a.share_low end as low,
        case when not by_labels then a.corrected_high when a.best = 'raw' then a.best_share_high else a.share_high end as high,
        case when not by_labels then b.corrected_low when b.best = 'raw' then b.best_share_low else b.share_low end as other_low,
        case when not by_labels then b.corrected_high when b.best = 'raw' then b.best_share_high else b.share_high end as other_high,
        a.ratio as ratio, b.ratio as other_ratio, a.verdict as verdict, b.verdict as other_verdict
    from pairs
)
select attribute, "group", estimate, share, low, high, other_share, other_low, other_high, other_share - share as difference,
    difference - sqrt((other_share - other_low) ** 2 + (high - share) ** 2) as difference_low,
    difference + sqrt((other_high - other_share) ** 2 + (share - low) ** 2) as difference_high,
    case when difference_low > 0 then 'more' when difference_high < 0 then 'less' else 'inconclusive' end as finding,
    ratio, other_ratio, verdict, other_verdict
from shares
order by array_position(['gender', 'age', 'skin_group', 'skin_tone', 'intersection', 'intersection_age'], attribute), rank, "group";
