-- Means of a study's arms over their seeds, with intervals, and the value of every seed.
-- In the rows of the means, `seed` is null, and the intervals include the uncertainty due to seeds, samples and calibration; the
-- mean of a single seed has none. The interval in the row of a seed is the one that its run claims.
-- param study (default all): the study's name, or all
-- param attribute (default all): one of all, @attributes
-- param metric (default share): one of share, ratio, total_variation
-- param estimate (default used): one of used, raw, corrected
select e.study, e.arm, e.seed, e.attribute, e."group", e.metric, e.baseline, e.estimate, e.n, e.seeds, e.value, e.low, e.high
from study_estimates as e left join vocabulary as v using (attribute, "group")
where ($study = 'all' or study = $study) and ($attribute = 'all' or e.attribute = $attribute) and metric = $metric
    and (if($estimate = 'used', used, estimate = $estimate))
order by study, attribute_rank(e.attribute), baseline, v.rank, e."group", arm_rank(e.study, e.arm), seed nulls first;
