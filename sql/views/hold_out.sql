-- The views of the generators whose fakes detectors are evaluated on, and of detectors that were trained without some of them.

create macro wilson_centre(count_, n) as (count_ + 1.959964 ** 2 / 2) / (n + 1.959964 ** 2);
create macro wilson_half_width(count_, n) as
    1.959964 / (n + 1.959964 ** 2) * sqrt(count_ * (n - count_) / n + 1.959964 ** 2 / 4);
-- Wilson's 95 % interval of a share (J. Am. Stat. Assoc. 22 (1927) 209-212).
create macro wilson_low(count_, n) as if(count_ = 0, 0, wilson_centre(count_, n) - wilson_half_width(count_, n));
create macro wilson_high(count_, n) as if(count_ = n, 1, wilson_centre(count_, n) + wilson_half_width(count_, n));

-- Detectors that were trained here, with the families and methods whose fakes were held out of training. `options` lacks
-- options without a value, and the feed, which does not change the result.
create view detectors as
    select name as detector, status, steps, data.manifest as manifest, coalesce(data.held_out, []) as held_out,
        json_merge_patch('{}', json_merge_patch(requested_options, '{"feed": null}')) as options
    from (from detectors_columns union all by name from {detectors});
create macro held_out_of(detector_) as
    (select nullif(max(array_to_string(held_out, ', ')), '') from detectors where detectors.detector = detector_);

-- The unperturbed test faces with the family and method of each: the folders of an image, or the run of a sample.
create view generator_predictions as
    select p.*, if(p.source = 'samples', 'GANs', i.family) as family, if(p.source = 'samples', p.run, i.subset) as method,
        p.target = 'fake' and coalesce(list_has_any(d.held_out, [i.family, i.subset]), false) as is_held_out
    from evaluated_predictions as p
    left join (select key, family, subset from image_rows where status = 'packed') as i
        on p.source = 'images' and p.key = i.key
    left join detectors as d on p.detector = d.detector
    where p.perturbation = 'none';

-- How often a detector classifies the fakes of each family and method as fake. `is_held_out` is null for a family of which
-- only some methods were held out of training.
create view generators as
    with counted as (
        select evaluation_set, detector, family, if(grouping(method) = 1, 'all', method) as method, attribute, "group",
            if(bool_and(is_held_out) = bool_or(is_held_out), bool_and(is_held_out), null) as is_held_out,
            count(*) as fakes, count(*) filter (called_fake) as called_fake
        from (
            select evaluation_set, detector, coalesce(family, 'unknown') as family, coalesce(method, 'unknown') as method, is_held_out,
                called_fake, 'all' as "all", {tabulated_text}
            from generator_predictions where target = 'fake')
        unpivot ("group" for attribute in ("all", {tabulated_columns}))
        group by grouping sets ((evaluation_set, detector, family, attribute, "group"),
            (evaluation_set, detector, family, method, attribute, "group"))
    )
    select *, called_fake / fakes as tpr, wilson_low(called_fake, fakes) as low, wilson_high(called_fake, fakes) as high
    from counted;

-- For each detector that was trained without some fakes, the one with the same model and options that was trained on all:
-- if there are several, the one with the closest number of steps. The trivial detectors of its evaluation set are evaluated on
-- the same fakes.
create view hold_out_pairs as
    with trained as (
        select sets.evaluation_set, part.detector, part.held_out, entire.detector as full_detector
        from detectors as part
        join evaluation_sets as sets using (detector)
        left join (from detectors semi join raw_predictions using (detector)) as entire
            on len(entire.held_out) = 0 and part.options = entire.options and part.manifest = entire.manifest
        where len(part.held_out) > 0
        qualify row_number() over (partition by part.detector order by abs(part.steps - entire.steps), entire.detector) = 1
    ), pairs as (
        from trained
        union all
        select distinct evaluation_set, unnest([{trivial_detectors}]), held_out, null from trained
    )
    select *, row_number() over (order by evaluation_set, detector, held_out)::smallint as pair from pairs;

-- The real test faces and the fakes of held-out generators, with the logits of the detector that has not seen these
-- and of the one that has.
create view hold_out_faces as
    select p.*, pair, entire.logit as full_logit, calls_fake(entire.logit) as full_called_fake
    from generator_predictions as p
    join hold_out_pairs as pairs on p.evaluation_set = pairs.evaluation_set and p.detector = pairs.detector
    left join raw_predictions as entire on entire.detector = pairs.full_detector and entire.part = 'test'
        and entire.perturbation = 'none' and entire.source = p.source and entire.run is not distinct from p.run
        and entire.key = p.key
    where p.target = 'real' or list_has_any(pairs.held_out, [p.family, p.method]);

-- How well a detector detects the fakes of held-out generators in each group, and how much better it does after training on
-- them. A face's placement is the share of the other side with a lower logit, ties counting half: the mean of the fakes'
-- placements is the AUC, and the variances of both sides are its variance and, from the differences of two detectors'
-- placements, that of a difference (DeLong et al., Biometrics 44 (1988) 837-845). The interval of the AUC is symmetric on the
-- logit scale. That of a difference between TPRs is the adjusted Wald interval for paired shares (Bonett and Price, J. Educ. Behav.
-- Stat. 37 (2012) 479-488).
create view hold_out as
    with judged as materialized (
        from (
            select pair, target = 'fake' as is_fake, logit, full_logit, called_fake, full_called_fake,
                unnest([0, {numbered_groups}])::smallint as number
            from hold_out_faces)
        where number is not null
    ), sizes as (
        select pair, number, count(*) filter (is_fake) as fakes, count(*) filter (not is_fake) as reals
        from judged group by all
    ), lower as (  -- the fakes and real faces below each logit, ties counting half
        select pair, number, logit, sum(fakes) over below - fakes / 2 as fakes_below,
            sum(reals) over below - reals / 2 as reals_below
        from (
            select pair, number, logit, count(*) filter (is_fake) as fakes, count(*) filter (not is_fake) as reals
            from judged group by all)
        window below as (partition by pair, number order by logit)
    ), full_lower as (
        select pair, number, full_logit, sum(fakes) over below - fakes / 2 as full_fakes_below,
            sum(reals) over below - reals / 2 as full_reals_below
        from (
            select pair, number, full_logit, count(*) filter (is_fake) as fakes, count(*) filter (not is_fake) as reals
            from judged where full_logit is not null group by all)
        window below as (partition by pair, number order by full_logit)
    ), placements as (
        select *, if(is_fake, reals_below / nullif(reals, 0), fakes_below / nullif(fakes, 0)) as placement,
            if(is_fake, full_reals_below / nullif(reals, 0), full_fakes_below / nullif(fakes, 0)) as full_placement
        from judged join sizes using (pair, number) join lower using (pair, number, logit)
        left join full_lower using (pair, number, full_logit)
    ), totals as (
        select pair, number, any_value(fakes) as fakes,
            any_value(reals) as reals, count(*) filter (is_fake and called_fake) as called_fake,
            count(*) filter (is_fake and full_called_fake) as full_called_fake,
            count(*) filter (is_fake and called_fake and not full_called_fake) as gained,
            count(*) filter (is_fake and not called_fake and full_called_fake) as lost,
            avg(placement) filter (is_fake) as auc, avg(full_placement) filter (is_fake) as full_auc,
            sqrt(var_samp(placement) filter (is_fake) / any_value(fakes)
                + var_samp(placement) filter (not is_fake) / any_value(reals)) as auc_error,
            sqrt(var_samp(placement - full_placement) filter (is_fake) / any_value(fakes)
                + var_samp(placement - full_placement) filter (not is_fake) / any_value(reals)) as difference_error
        from placements group by pair, number
    ), compared as (
        select *, called_fake / fakes as tpr, if(full_detector is null, null, full_called_fake / fakes) as full_tpr,
            -- equal placements don't show how uncertain an AUC is
            1.959964 * nullif(auc_error, 0) / nullif(auc * (1 - auc), 0) as logit_half_width, ln(auc / (1 - auc)) as auc_logit,
            1.959964 * nullif(difference_error, 0) as difference_half_width,
            (gained - lost) / (fakes + 2) as shift,
            1.959964 * sqrt(((gained + lost + 2) / (fakes + 2) - ((gained - lost) / (fakes + 2)) ** 2) / (fakes + 2)) as shift_half_width
        from totals join hold_out_pairs using (pair) where fakes > 0
    )
    select evaluation_set, detector, array_to_string(held_out, ', ') as held_out, attribute, "group", fakes, reals, tpr,
        wilson_low(called_fake, fakes) as tpr_low, wilson_high(called_fake, fakes) as tpr_high, auc, 1 / (1 + exp(logit_half_width - auc_logit)) as auc_low,
        1 / (1 + exp(-logit_half_width - auc_logit)) as auc_high, full_detector, full_tpr, full_auc,
        tpr - full_tpr as tpr_difference,
        if(full_detector is null, null, greatest(shift - shift_half_width, -1)) as tpr_difference_low,
        if(full_detector is null, null, least(shift + shift_half_width, 1)) as tpr_difference_high,
        auc - full_auc as auc_difference,
        if(difference_half_width is null, null, greatest(auc_difference - difference_half_width, -1)) as auc_difference_low,
        if(difference_half_width is null, null, least(auc_difference + difference_half_width, 1)) as auc_difference_high,
        attribute <> 'all' and tpr = min(tpr) over (partition by pair, attribute) as is_worst_group
    from compared join group_numbers using (number);
