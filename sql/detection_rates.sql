-- How often each detector classifies a run's samples as fake, overall and by group, with 95 % intervals.
-- Groups are by the selected labeller's labels, with Wilson's intervals. `corrected` estimates the true groups' rates from its
-- error rates (`correction`: labels) or people's labels (audit), as computed by the last `report`; `note` says why if it is none.
-- Samples that a detector was trained on are excluded.
-- param run (default newest): the run
-- param detector (default all): the detector's name, or all
with groups as (
    select detector, run, attribute, correction as gap_correction, note from rate_estimates where "group" is null
), corrected as (
    select detector, run, attribute, "group", correction, rate as corrected, low as corrected_low, high as corrected_high
    from rate_estimates where "group" is not null
)
select detector, run, attribute, "group", coalesce(n, 0) as n, coalesce(called_fake, 0) as called_fake, rate, low, high,
    corrected, corrected_low, corrected_high, coalesce(correction, gap_correction) as correction, note,
    held_out_of(detector) as held_out
from detection_rates full join corrected using (detector, run, attribute, "group")
    left join groups using (detector, run, attribute)
    left join vocabulary using (attribute, "group")
where run = resolve_run($run) and ($detector = 'all' or detector = $detector)
order by detector, run, attribute_rank(attribute), coalesce(vocabulary.rank, 1000), "group";
