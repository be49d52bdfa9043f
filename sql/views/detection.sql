-- The views of detectors of generated faces: their predictions, utility and fairness.

-- A face is classified as fake if the sigmoid of its logit is at least 0.5.
create macro calls_fake(logit) as 1 / (1 + exp(-logit)) >= 0.5;
create macro calibration_bin(probability) as greatest(ceil(15 * probability), 1);

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

-- Detectors were evaluated on the same faces, those of one evaluation set, if their unperturbed test faces agree in their
-- keys, targets and groups. A set is named after the first of its detectors.
create view evaluation_sets as
    select detector, min(detector) over (partition by faces, hash) as evaluation_set, fakes, reals
    from (
        select detector, count(*) as faces, bit_xor(hash(source, run, key, target, grouped_by, {stored_columns})) as hash,
            count(*) filter (target = 'fake') as fakes, count(*) filter (target = 'real') as reals
        from raw_predictions where part = 'test' and perturbation = 'none' group by detector);

-- Trivial detectors, which ignore the image: one gives every face the share of fakes in its evaluation set as the
-- probability, and thus calls all faces by the more frequent target (scikit-learn's DummyClassifier with the strategy
-- `prior`); one calls all faces by the other target; and one guesses a probability, a function of the face's key.
create macro is_trivial(name) as name in ({trivial_detectors});
create view trivial_predictions as
    with constants as (
        select evaluation_set, ln((fakes + 0.5) / (reals + 0.5)) as log_odds  -- finite even without one of the targets
        from evaluation_sets where detector = evaluation_set
    ), faces as (
        select p.*, evaluation_set, log_odds, (md5_number_lower(key) % 2000 + 0.5) / 2000 as guess
        from predictions as p join constants on p.detector = evaluation_set
        where p.part = 'test' and p.perturbation = 'none'
    ), guesses as (
        select * exclude (log_odds, guess, kind) replace (kind as detector, case kind
            when '(majority)' then log_odds
            when '(minority)' then if(log_odds = 0, -1e-9, -log_odds)  -- as many reals as fakes: the majority is fake
            else ln(guess / (1 - guess)) end as logit)
        from faces cross join (select unnest([{trivial_detectors}]) as kind)
    )
    select * replace (calls_fake(logit) as called_fake) from guesses;

-- The predictions that detectors are evaluated on: of test faces, each once for every perturbation; and those of the
-- trivial detectors.
create view test_predictions as
    select p.*, evaluation_set from predictions as p left join evaluation_sets using (detector) where part = 'test';
create view evaluated_predictions as
    select *, {crosses} from (from test_predictions union all by name from trivial_predictions);

-- The numbers by which queries refer to groups: millions of faces are sorted and counted faster by numbers than by text.
create table group_numbers as
    from (values (0, 'all', 'all'), {group_numbers}) as numbers (number, attribute, "group");

-- The evaluated faces; those of trivial detectors, which have few logits, are counted by all attributes together.
create view face_counts as
    select evaluation_set, detector, perturbation, logit, target = 'fake' as is_fake, {stored_columns}, 1 as faces
    from test_predictions
    union all
    select evaluation_set, detector, perturbation, logit, target = 'fake', {stored_columns}, count(*)
    from trivial_predictions group by all;

-- For every logit of a group, the number of fakes and real faces with exactly this logit.
create view logit_counts as
    select evaluation_set, detector, perturbation, number, logit, coalesce(sum(faces) filter (is_fake), 0)::bigint as fakes,
        coalesce(sum(faces) filter (not is_fake), 0)::bigint as reals
    from (select * exclude ({stored_columns}), unnest([0, {numbered_groups}])::smallint as number from face_counts)
    where number is not null group by all;

-- Every logit of a group as a threshold: the fakes and real faces at or above it (`tp`, `fp`), and those exactly at it;
-- `is_collinear` is true within a straight part of the ROC curve.
create view thresholds as
    select *, sum(fakes) over falling as tp, sum(reals) over falling as fp, sum(fakes) over all_logits as all_fakes,
        sum(reals) over all_logits as all_reals, row_number() over falling > 1 and fakes = lead(fakes) over falling
            and reals = lead(reals) over falling as is_collinear
    from logit_counts
    window all_logits as (partition by evaluation_set, detector, perturbation, number),
        falling as (partition by evaluation_set, detector, perturbation, number order by logit desc);

-- Utility of a detector for each group of faces, as defined by scikit-learn and AI-Face's benchmark. The equal error rate
-- is the FPR at the corner of the ROC curve where FPR and FNR are closest; the error rate is balanced. A rate is null if
-- it is undefined, such as the FPR without real faces.
create view utility as
    with roc_points as (
        select *, fp / nullif(all_reals, 0) as fpr, tp / nullif(all_fakes, 0) as tpr from thresholds
    ), totals as (
        select evaluation_set, detector, perturbation, number, max(all_fakes)::bigint as fakes, max(all_reals)::bigint as reals,
            sum(reals * (tp - fakes / 2)) / nullif(max(all_fakes) * max(all_reals), 0) as auc,
            if(max(all_reals) > 0, sum(fakes * tp / (tp + fp)) / nullif(max(all_fakes), 0), null) as average_precision,
            if(count(*) > 1, arg_min(fpr, [abs(1 - tpr - fpr), -logit])
                filter (is_collinear is not true and fpr is not null and tpr is not null), null) as eer,
            coalesce(max(tp) filter (calls_fake(logit)), 0) as tp,
            coalesce(max(fp) filter (calls_fake(logit)), 0) as fp
        from roc_points group by all
    )
    select evaluation_set, detector, perturbation, attribute, "group", fakes + reals as n, fakes, reals, auc, average_precision,
        eer, fp / nullif(reals, 0) as fpr, tp / nullif(fakes, 0) as tpr, 1 - tpr as fnr, 1 - fpr as tnr,
        (tp + reals - fp) / (fakes + reals) as accuracy, 1 - (tpr + 1 - fpr) / 2 as error_rate,
        (tp + fp) / (fakes + reals) as positive_rate
    from totals join group_numbers using (number);

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

-- How differently a detector treats the groups of an attribute. AI-Face's benchmark: ranges over the groups, and sums of the
-- groups' differences from all faces. fairlearn: the equalised-odds difference (F_MEO by another name) and ratio, each the worse
-- of TPR and FPR; a ratio of FPRs that are all 0 is ignored. Groups of only real faces or only fakes are excluded from all
-- of them and listed in `excluded_groups`; a single group that remains can't be compared, and has no row.
create view fairness as
    with group_utility as (
        from utility where attribute <> 'all'
    ), overall as (  -- over the faces whose group is known
        select evaluation_set, detector, perturbation, attribute, sum(tpr * fakes) / sum(fakes) as tpr,
            sum(fpr * reals) / sum(reals) as fpr
        from group_utility group by all
    ), compared as (
        select u.*, abs(u.fpr - overall.fpr) as fpr_difference, abs(u.tpr - overall.tpr) as tpr_difference
        from group_utility as u join overall using (evaluation_set, detector, perturbation, attribute)
        where u.fakes > 0 and u.reals > 0
    ), excluded as (
        select evaluation_set, detector, perturbation, attribute, string_agg("group", ', ' order by "group") as excluded_groups
        from group_utility where fakes = 0 or reals = 0 group by all
    )
    select evaluation_set, detector, perturbation, attribute, count(*) as groups, max(auc) - min(auc) as auc_gap,
        max(fpr) - min(fpr) as fpr_gap, max(error_rate) - min(error_rate) as error_rate_gap,
        greatest(max(fpr) - min(fpr), max(fnr) - min(fnr), max(tnr) - min(tnr), max(tpr) - min(tpr)) as f_meo,
        max(positive_rate) - min(positive_rate) as f_dp, max(accuracy) - min(accuracy) as f_oae,
        sum(fpr_difference + tpr_difference) as f_eo, sum(fpr_difference) as f_efpr,
        greatest(max(tpr) - min(tpr), max(fpr) - min(fpr)) as equalized_odds_difference,
        if(max(tpr) > 0, least(min(tpr) / max(tpr), min(fpr) / nullif(max(fpr), 0)), null) as equalized_odds_ratio,
        any_value(excluded_groups) as excluded_groups
    from compared left join excluded using (evaluation_set, detector, perturbation, attribute)
    group by all having count(*) > 1;
