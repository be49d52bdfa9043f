-- Differences of two arms of a study over the seeds of both: `arm` less `compared_with`, with 95 % intervals and tests.
-- `p` is that of the interval, `sign_flip_p` that of the exact test, which can't be below `least_sign_flip_p`: five pairs never
-- reach 0.05, six can. `significant` is by Holm's procedure over all groups. `seeds_needed` would settle the difference.
-- param study (default all): the study's name, or all
-- param attribute (default all): one of all, @attributes
-- param metric (default share): one of share, ratio, total_variation
-- param estimate (default used): one of used, raw, corrected
select p.* exclude (used)
from study_paired as p left join vocabulary as v using (attribute, "group")
where ($study = 'all' or study = $study) and ($attribute = 'all' or p.attribute = $attribute) and metric = $metric
    and (if($estimate = 'used', used, estimate = $estimate))
order by study, arm_rank(p.study, p.compared_with), arm_rank(p.study, p.arm), attribute_rank(p.attribute), baseline, v.rank, p."group";
