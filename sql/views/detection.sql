-- The views of detectors of generated faces: their predictions, utility and fairness.

-- A face is classified as fake if the sigmoid of its logit is at least 0.5.
create macro calls_fake(logit) as 1 / (1 + exp(-logit)) >= 0.5;

create view raw_predictions as
    from predictions_columns union all by name from {predictions};

-- The groups of predicted faces by the selected labeller. The labels are first reduced to the predicted faces, because
-- there may be a million labels and only a few predictions.
create macro is_selected(attribute_, method_) as
    method_ in ('imported', (select selected_method.method from selected_method where selected_method.attribute = attribute_));
create view prediction_groups as
    with predicted_faces as (
        select distinct source, run, key from raw_predictions where grouped_by = 'labelled'
    ), face_labels as (
        select case source when 'train' then 'images' else 'samples' end as source, run, key, method, {stored_classes}
        from label_rows where source in ('train', 'generated')
    )
    select source, run, key, {selected_columns}
    from face_labels as l semi join predicted_faces as p on l.key = p.key and l.source = p.source
        and l.run is not distinct from p.run
    group by all;

-- Predictions with the groups of their faces: the annotations, or the selected labeller's labels if the test set contains
-- samples (`grouped_by`). Imported predictions bring their own groups.
create view predictions as
    select p.* replace ({predicted_columns}),
        calls_fake(logit) as called_fake
    from raw_predictions as p
    left join (select key, {stored_classes} from image_rows where status = 'packed') as a
        on p.grouped_by = 'annotated' and p.source = 'images' and p.key = a.key
    left join prediction_groups as l on p.grouped_by = 'labelled' and p.source = l.source and p.run is not distinct from l.run
        and p.key = l.key;

-- The predictions that detectors are evaluated on: of test faces, each once for every perturbation.
create view evaluated_predictions as
    select *, {crosses} from predictions where part = 'test';

create view detection_metrics as
    from detection_metrics_columns union all by name from {detection_metrics};

-- Every logit of a group as a threshold: the fakes and real faces at or above it (`tp`, `fp`), and those exactly at it.
create view thresholds as
    select detector, perturbation, attribute, "group", logit, fakes, reals, sum(fakes) over at_least as tp,
        sum(reals) over at_least as fp, sum(fakes) over all_logits as all_fakes, sum(reals) over all_logits as all_reals
    from (
        select detector, perturbation, attribute, "group", logit, count(*) filter (target = 'fake') as fakes,
            count(*) filter (target = 'real') as reals
        from (select detector, perturbation, logit, target, 'all' as "all", {tabulated_text} from evaluated_predictions)
        unpivot ("group" for attribute in ("all", {tabulated_columns}))
        group by all)
    window all_logits as (partition by detector, perturbation, attribute, "group"),
        at_least as (partition by detector, perturbation, attribute, "group" order by logit desc);

-- Utility of a detector for each group of faces, as defined by scikit-learn and AI-Face's benchmark. The equal error rate
-- is the FPR at the corner of the ROC curve where FPR and FNR are closest; the error rate is balanced. A rate is null if
-- it is undefined, such as the FPR without real faces.
create view utility as
    with roc_points as (
        select *, fp / nullif(all_reals, 0) as fpr, tp / nullif(all_fakes, 0) as tpr,
            row_number() over falling > 1 and fakes = lead(fakes) over falling and reals = lead(reals) over falling as is_collinear
        from thresholds window falling as (partition by detector, perturbation, attribute, "group" order by logit desc)
    ), totals as (
        select detector, perturbation, attribute, "group", max(all_fakes)::bigint as fakes, max(all_reals)::bigint as reals,
            sum(reals * (tp - fakes / 2)) / nullif(max(all_fakes) * max(all_reals), 0) as auc,
            if(max(all_reals) > 0, sum(fakes * tp / (tp + fp)) / nullif(max(all_fakes), 0), null) as average_precision,
            if(count(*) > 1, arg_min(fpr, [abs(1 - tpr - fpr), -logit])
                filter (is_collinear is not true and fpr is not null and tpr is not null), null) as eer,
            coalesce(max(tp) filter (calls_fake(logit)), 0) as tp,
            coalesce(max(fp) filter (calls_fake(logit)), 0) as fp
        from roc_points group by all
    )
    select detector, perturbation, attribute, "group", fakes + reals as n, fakes, reals, auc, average_precision, eer,
        fp / nullif(reals, 0) as fpr, tp / nullif(fakes, 0) as tpr, 1 - tpr as fnr, 1 - fpr as tnr,
        (tp + reals - fp) / (fakes + reals) as accuracy, 1 - (tpr + 1 - fpr) / 2 as error_rate,
        (tp + fp) / (fakes + reals) as positive_rate
    from totals;

-- How often a detector classifies a run's samples as fake, with Wilson's interval (J. Am. Stat. Assoc. 22 (1927) 209-212).
create view detection_rates as
    with counted as (
        select detector, run, attribute, "group", count(*) as n, count(*) filter (called_fake) as called_fake,
            1.959964 ** 2 as zz
        from (
            select detector, run, called_fake, 'all' as "all", {tabulated_text}
            from (select *, {crosses} from predictions where source = 'samples' and perturbation = 'none'))
        unpivot ("group" for attribute in ("all", {tabulated_columns}))
        group by all
    ), rates as (
        select *, called_fake / n as rate, (called_fake + zz / 2) / (n + zz) as centre,
            sqrt(zz * (called_fake * (n - called_fake) / n + zz / 4)) / (n + zz) as half_width
        from counted
    )
    select detector, run, attribute, "group", coalesce(rank, 1000) as rank, n, called_fake, rate,
        if(called_fake = 0, 0, centre - half_width) as low, if(called_fake = n, 1, centre + half_width) as high
    from rates left join vocabulary using (attribute, "group");

-- How differently a detector treats the groups of an attribute (AI-Face's benchmark): ranges over the groups, and sums of
-- the groups' differences from all faces. Groups of only real faces or only fakes are excluded from all of them and listed
-- in `excluded_groups`.
create view fairness as
    with group_utility as (
        from utility where attribute <> 'all'
    ), overall as (  -- over the faces whose group is known
        select detector, perturbation, attribute, sum(tpr * fakes) / sum(fakes) as tpr, sum(fpr * reals) / sum(reals) as fpr
        from group_utility group by all
    ), compared as (
        select u.*, abs(u.fpr - overall.fpr) as fpr_difference, abs(u.tpr - overall.tpr) as tpr_difference
        from group_utility as u join overall using (detector, perturbation, attribute) where u.fakes > 0 and u.reals > 0
    ), excluded as (
        select detector, perturbation, attribute, string_agg("group", ', ' order by "group") as excluded_groups
        from group_utility where fakes = 0 or reals = 0 group by all
    )
    select detector, perturbation, attribute, count(*) as groups, max(auc) - min(auc) as auc_gap, max(fpr) - min(fpr) as fpr_gap,
        max(error_rate) - min(error_rate) as error_rate_gap,
        greatest(max(fpr) - min(fpr), max(fnr) - min(fnr), max(tnr) - min(tnr), max(tpr) - min(tpr)) as f_meo,
        max(positive_rate) - min(positive_rate) as f_dp, max(accuracy) - min(accuracy) as f_oae,
        sum(fpr_difference + tpr_difference) as f_eo, sum(fpr_difference) as f_efpr,
        any_value(excluded_groups) as excluded_groups
    from compared left join excluded using (detector, perturbation, attribute) group by all;
