-- Differences of two arms of a study, over the seeds that both have, with 95 % intervals and tests.
-- `difference` is `arm` minus `compared_with`. `p` belongs to the interval, and `sign_flip_p` to the exact test, whose p-value
-- can't be below `least_sign_flip_p`: with five pairs it never reaches 0.05, with six it can. `significant` is by Holm's
-- procedure over all groups. `seeds_needed` is the number of seeds that would settle the difference.
-- param study (default all): the study's name, or all
-- param attribute (default all): one of all, @attributes
-- param metric (default share): one of share, ratio, total_variation
-- param estimate (default used): one of used, raw, corrected
select p.* exclude (used)
from study_paired as p left join vocabulary as v using (attribute, "group")
where ($study = 'all' or study = $study) and ($attribute = 'all' or p.attribute = $attribute) and metric = $metric
    and (if($estimate = 'used', used, estimate = $estimate))
order by study, arm_rank(p.study, p.compared_with), arm_rank(p.study, p.arm), attribute_rank(p.attribute), baseline, v.rank, p."group";
