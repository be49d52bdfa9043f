-- The views of detectors at thresholds that all groups share, and of their calibration.

-- Thresholds that are the same for all groups: the lowest at which at most 1 % or 5 % of all real faces are called fake, and
-- the highest at which at least 95 % of all fakes are. Null if no threshold reaches that, or without such faces. With fewer than
-- 1 / 0.01 real faces, an FPR of 1 % can't be distinguished from 0 (`is_resolvable`).
create view common_thresholds as
    select evaluation_set, detector, perturbation, point, max(if(rate = 'fpr', all_reals, all_fakes)) as side,
        case when side = 0 then null when rate = 'fpr' then min(logit) filter (fp <= bound * all_reals)
            else max(logit) filter (tp >= bound * all_fakes) end as threshold,
        side * least(bound, 1 - bound) >= 1 as is_resolvable
    from (
        select evaluation_set, detector, perturbation, logit, sum(fakes) over falling as tp, sum(reals) over falling as fp,
            sum(fakes) over all_logits as all_fakes, sum(reals) over all_logits as all_reals
        from (
            select evaluation_set, detector, perturbation, logit, coalesce(sum(faces) filter (is_fake), 0)::bigint as fakes,
                coalesce(sum(faces) filter (not is_fake), 0)::bigint as reals
            from face_counts group by evaluation_set, detector, perturbation, logit)
        window all_logits as (partition by evaluation_set, detector, perturbation),
            falling as (partition by evaluation_set, detector, perturbation order by logit desc))
    cross join (values ('fpr_1', 'fpr', 0.01), ('fpr_5', 'fpr', 0.05), ('tpr_95', 'tpr', 0.95)) as points (point, rate, bound)
    group by evaluation_set, detector, perturbation, point, rate, bound;
create view operating_points as
    select evaluation_set, detector, perturbation, attribute, "group", point, threshold, is_resolvable, fakes, reals,
        if(side = 0, null, tp / nullif(fakes, 0)) as tpr, if(side = 0, null, fp / nullif(reals, 0)) as fpr
    from (
        select evaluation_set, detector, perturbation, number, point, any_value(side) as side, any_value(threshold) as threshold,
            any_value(is_resolvable) as is_resolvable, coalesce(sum(faces) filter (is_fake), 0)::bigint as fakes,
            coalesce(sum(faces) filter (not is_fake), 0)::bigint as reals, coalesce(sum(called) filter (is_fake), 0) as tp,
            coalesce(sum(called) filter (not is_fake), 0) as fp
        from (
            select *, unnest([0, {numbered_groups}])::smallint as number
            from (  -- first the faces of all attributes together, which have few combinations
                select evaluation_set, detector, perturbation, is_fake, {stored_columns}, point, side, threshold, is_resolvable,
                    sum(faces) as faces, sum(if(logit >= threshold, faces, 0)) as called
                from face_counts join common_thresholds using (evaluation_set, detector, perturbation) group by all))
        where number is not null group by evaluation_set, detector, perturbation, number, point)
    join group_numbers using (number);

-- Calibration: how far the detector's probabilities are from the shares of fakes, in 15 bins of equal width. `ece` is the
-- expected calibration error (Guo et al., ICML 2017). Chance makes it positive even for perfect probabilities;
-- `squared_error` is the mean squared distance without that bias (Ferro and Fricker, Q. J. R. Meteorol. Soc. 138 (2012)
-- 1954-1960; Kumar et al., NeurIPS 2019), over the bins with at least two faces, and `calibration_error` its root.
create view calibration as
    with counted as (  -- the faces of all attributes together, which have few combinations
        select evaluation_set, detector, perturbation, is_fake, {stored_columns}, calibration_bin(probability) as bin,
            sum(faces) as faces, sum(faces * probability) as probabilities
        from (select *, 1 / (1 + exp(-logit)) as probability from face_counts) group by all
    ), bins as (
        select evaluation_set, detector, perturbation, number, sum(faces) as n, coalesce(sum(faces) filter (is_fake), 0) / n as share,
            sum(probabilities) / n as mean_probability
        from (select *, unnest([0, {numbered_groups}])::smallint as number from counted)
        where number is not null group by evaluation_set, detector, perturbation, number, bin
    ), errors as (
        select evaluation_set, detector, perturbation, number, sum(bins.n)::bigint as n,
            sum(bins.n * bins.mean_probability) / sum(bins.n) as mean_probability, sum(bins.n * share) / sum(bins.n) as fake_share,
            sum(bins.n * abs(bins.mean_probability - share)) / sum(bins.n) as ece,
            sum(bins.n * ((bins.mean_probability - share) ** 2 - share * (1 - share) / (bins.n - 1))) filter (bins.n > 1)
                / sum(bins.n) filter (bins.n > 1) as squared_error
        from bins group by evaluation_set, detector, perturbation, number
    )
    select evaluation_set, detector, perturbation, attribute, "group", n, mean_probability, fake_share, ece, squared_error,
        if(squared_error is null, null, sqrt(greatest(squared_error, 0))) as calibration_error
    from errors join group_numbers using (number);

-- The group that a detector serves worst, at the common thresholds and by its calibration. Groups of only real faces or only
-- fakes are excluded, and so are attributes of which fewer than two groups remain.
create view worst_groups as
    with at_points as (
        select evaluation_set, detector, perturbation, attribute, point, min(tpr) as worst_tpr,
            arg_min("group", [tpr, rank]) as worst_group, bool_and(is_resolvable) as is_resolvable,
            greatest(max(tpr) - min(tpr), max(fpr) - min(fpr)) as equalized_odds_difference
        from operating_points join vocabulary using (attribute, "group") where fakes > 0 and reals > 0
        group by all having count(*) > 1
    ), calibrated as (
        select evaluation_set, detector, perturbation, attribute, max(calibration_error) as largest_calibration_error,
            arg_max("group", [calibration_error, -rank]) filter (calibration_error is not null) as worst_calibrated_group,
            max(calibration_error) - min(calibration_error) as calibration_gap
        from calibration join vocabulary using (attribute, "group") where fake_share > 0 and fake_share < 1 group by all
    )
    select evaluation_set, detector, perturbation, attribute, max(worst_tpr) filter (point = 'fpr_1') as worst_tpr_at_fpr_1,
        max(worst_group) filter (point = 'fpr_1') as worst_group_at_fpr_1,
        bool_and(is_resolvable) filter (point = 'fpr_1') as is_fpr_1_resolvable,
        max(worst_tpr) filter (point = 'fpr_5') as worst_tpr_at_fpr_5,
        max(worst_group) filter (point = 'fpr_5') as worst_group_at_fpr_5,
        bool_and(is_resolvable) filter (point = 'fpr_5') as is_fpr_5_resolvable,
        any_value(largest_calibration_error) as largest_calibration_error,
        any_value(worst_calibrated_group) as worst_calibrated_group, any_value(calibration_gap) as calibration_gap
    from at_points join calibrated using (evaluation_set, detector, perturbation, attribute) group by all;
