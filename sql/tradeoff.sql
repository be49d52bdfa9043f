-- The trade-off of utility and fairness at a threshold that all groups and detectors share, and the detectors' Pareto fronts.
-- A detector dominates another of its evaluation set if it is at least as good in both, and better in one. Front 1 consists of
-- the detectors that none dominates, front 2 of those that only front 1 dominates, and so on. `front_share` is the share of
-- bootstrap replicates, in which each face has the same weight for all detectors, with the detector on front 1.
-- param attribute (default gender): one of @attributes
-- param point (default fpr_5): one of fpr_1, fpr_5, tpr_95
-- param utility (default auc): one of auc, tpr, accuracy
-- param fairness (default equalized_odds_difference): one of equalized_odds_difference, worst_tpr
with measured as (
    select u.evaluation_set, u.detector, u.value as utility, u.low as utility_low, u.high as utility_high, f.value as fairness,
        f.low as fairness_low, f.high as fairness_high, f.floor as fairness_floor, u.replicates as utilities,
        f.replicates as fairnesses, if($fairness = 'equalized_odds_difference', -1, 1) as direction
    from tradeoff_points as u join tradeoff_points as f using (evaluation_set, detector, point)
    where point = $point and u.attribute = 'all' and u.measure = $utility and f.attribute = $attribute
        and f.measure = $fairness and u.value is not null and f.value is not null
), scores as materialized (  -- larger is better in both; number 0 is the detector itself, the others are replicates
    select evaluation_set, detector, 0 as number, utility, direction * fairness as fairness from measured
    union all
    select evaluation_set, detector, unnest(range(1, len(utilities) + 1)), unnest(utilities), direction * unnest(fairnesses)
    from measured
), dominance as materialized (
    select evaluation_set, number, better.detector as better, worse.detector as worse
    from scores as better join scores as worse using (evaluation_set, number)
    where better.utility >= worse.utility and better.fairness >= worse.fairness
        and (better.utility > worse.utility or better.fairness > worse.fairness)
), chains as (  -- a detector's front: the length of the longest chain in which each dominates the next, up to it
    with recursive chain as (
        select distinct evaluation_set, detector, 1 as front from measured
        union
        select chain.evaluation_set, worse, front + 1
        from chain join dominance on dominance.evaluation_set = chain.evaluation_set and better = chain.detector and number = 0
    )
    select evaluation_set, detector, max(front) as front from chain group by all
), dominated as (
    select evaluation_set, worse as detector, count(distinct number) filter (number > 0) as replicates,
        string_agg(better, ', ' order by better) filter (number = 0) as dominated_by
    from dominance group by all
), complete as (  -- replicates in which both are defined: in a tiny set a group may lack a target
    select evaluation_set, detector, count(*) as complete from scores
    where number > 0 and utility is not null and fairness is not null group by all
), others as (
    select evaluation_set, detector, max(value) filter (measure = 'auc') as auc, max(value) filter (measure = 'tpr') as tpr,
        max(value) filter (measure = 'fpr') as fpr, max(value) filter (measure = 'accuracy') as accuracy
    from tradeoff_points where attribute = 'all' and point = $point group by all
)
select evaluation_set, detector, utility, utility_low, utility_high, fairness, fairness_low, fairness_high, fairness_floor, front,
    1 - coalesce(replicates, 0) / complete as front_share, dominated_by, auc, tpr, fpr, accuracy,
    held_out_of(detector) as held_out
from measured join chains using (evaluation_set, detector) join others using (evaluation_set, detector)
left join complete using (evaluation_set, detector) left join dominated using (evaluation_set, detector)
order by evaluation_set, is_trivial(detector), front, detector;
