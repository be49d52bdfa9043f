-- How much do the runs of an arm vary between seeds, compared with the interval that a single run claims?
-- `seed_sd` is the standard deviation between seeds, without sampling noise; 95 % of the seeds lie within `seed_half_width`
-- of their mean, and `claimed_half_width` is half the mean width of the intervals of single runs.
-- param study (default all): the study's name, or all
-- param attribute (default all): one of all, @attributes
-- param metric (default share): one of share, ratio, total_variation
with claims as (
    select study, arm, attribute, "group", metric, baseline, estimate, min(value) as smallest, max(value) as largest,
        avg((high - low) / 2) as claimed_half_width
    from study_estimates where seed is not null group by all
)
select e.study, e.arm, e.attribute, e."group", e.baseline, e.estimate, e.seeds, e.value as mean, smallest, largest, e.seed_sd, e.seed_sd_low,
    e.seed_sd_high, e.sampling_sd, e.calibration_sd, 1.96 * e.seed_sd as seed_half_width, claimed_half_width
from study_estimates as e join claims
    on claims.study = e.study and claims.arm = e.arm and claims.attribute = e.attribute and claims.metric = e.metric
    and claims.estimate = e.estimate and claims."group" is not distinct from e."group" and claims.baseline is not distinct from e.baseline
left join vocabulary as v on v.attribute = e.attribute and v."group" = e."group"
where e.seed is null and e.used and ($study = 'all' or e.study = $study) and ($attribute = 'all' or e.attribute = $attribute)
    and e.metric = $metric
order by e.study, attribute_rank(e.attribute), e.baseline, v.rank, e."group", arm_rank(e.study, e.arm);
