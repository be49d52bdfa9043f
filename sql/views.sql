-- The views that every question is asked of. A name in braces stands for the files found below OUT; a table
-- `*_columns` states what such a file holds, and stands in for it (empty) where there is none yet.

create table images_columns (key varchar, shard varchar, path varchar, family varchar, subset varchar, split varchar,
    width integer, height integer, orientation tinyint, bytes bigint, sha256 varchar, gender varchar, age varchar, skin_tone tinyint,
    skin_group varchar, race varchar, target varchar, status varchar, reason varchar);
create table unmatched_columns (what varchar, reason varchar, path varchar, family varchar, subset varchar);
create table samples_columns (key varchar, run varchar, checkpoint varchar, seed bigint, index bigint, shard varchar, requested varchar);
create table labels_columns (key varchar, source varchar, run varchar, method varchar, labeller varchar, size integer,
    gender varchar, age varchar, skin_tone tinyint, typology_angle float, p_female float, p_male float, p_child float, p_young float, p_adult float,
    p_middle float, p_senior float, p_tone_1 float, p_tone_2 float, p_tone_3 float, p_tone_4 float, p_tone_5 float,
    p_tone_6 float, p_tone_7 float, p_tone_8 float, p_tone_9 float, p_tone_10 float);
create table labellers_columns (attribute varchar, method varchar, labeller varchar, n bigint, accuracy double,
    balanced_accuracy double, chosen boolean);
create table estimates_columns (run varchar, attribute varchar, "group" varchar, method varchar, n bigint, count bigint,
    share double, share_low double, share_high double, reference_n bigint, reference_count bigint, reference double,
    reference_low double, reference_high double, corrected double, corrected_low double, corrected_high double,
    annotated double, best varchar, note varchar, best_share double, best_share_low double, best_share_high double,
    best_reference double, best_reference_low double, best_reference_high double,
    best_reference_n bigint, ratio double, ratio_low double, ratio_high double, verdict varchar, why varchar,
    shifted boolean, n_needed bigint);
create table readings_columns (run varchar, attribute varchar, "group" varchar, method varchar, labeller varchar,
    estimate varchar, share double, low double, high double, reference double, ratio double, used boolean);
create table distances_columns (run varchar, attribute varchar, estimate varchar, measure varchar, "against" varchar,
    value double, low double, high double, null_floor double);
create table confusion_columns (method varchar, labeller varchar, attribute varchar, annotated varchar, labelled varchar,
    count bigint);
create table quality_columns (run varchar, attribute varchar, "group" varchar, n bigint, kernel_distance double,
    kernel_low double, kernel_high double, kernel_floor double, coverage double, coverage_floor double);
create table neighbours_columns (run varchar, source varchar, key varchar, nearest varchar, similarity double, among bigint);
create table predictions_columns (key varchar, detector varchar, part varchar, source varchar, run varchar, change varchar,
    grouped_by varchar, target varchar, logit double, gender varchar, skin_group varchar, age varchar);
create table detection_columns (detector varchar, attribute varchar, "group" varchar, measure varchar, value double,
    low double, high double, floor double);
create table steps_columns (step bigint, epoch bigint, images bigint, seconds double, loss_d float, loss_g float,
    d_real float, d_fake float, images_per_s float, data_wait float, filename varchar);
create table runs_columns (status varchar, started varchar, finished varchar, device varchar, steps bigint, options json, data json,
    filename varchar);

-- The classes of every attribute in their order, absent ones included.
create table vocabulary as
    select attribute, unnest(classes) as "group", generate_subscripts(classes, 1) as rank
    from (values
        ('gender', ['female', 'male']),
        ('age', ['child', 'young', 'adult', 'middle', 'senior']),
        ('skin_tone', ['1', '2', '3', '4', '5', '6', '7', '8', '9', '10']),
        ('skin_group', ['light', 'medium', 'dark']),
        ('intersection', ['female-light', 'female-medium', 'female-dark', 'male-light', 'male-medium', 'male-dark'])
    ) as attributes (attribute, classes);
insert into vocabulary
    select 'intersection_age', pair."group" || '-' || age."group", 5 * (pair.rank - 1) + age.rank
    from vocabulary as pair join vocabulary as age on pair.attribute = 'intersection' and age.attribute = 'age';

-- AI-Face's three groups of the ten Monk tones.
create macro group_of(tone) as
    case when tone between 1 and 3 then 'light'
         when tone between 4 and 6 then 'medium'
         when tone between 7 and 10 then 'dark' end;

create view images as
    select *, gender || '-' || skin_group as intersection, intersection || '-' || age as intersection_age
    from (from images_columns union all by name from {images});
create view rejects as
    select key, path, family, subset, split, bytes, reason from images where status = 'rejected';
create view unmatched as
    from unmatched_columns union all by name from {unmatched};
create view samples as
    from samples_columns union all by name from {samples};
create view labels as
    select * replace (coalesce(method, 'clip') as method), group_of(skin_tone) as skin_group,
        gender || '-' || group_of(skin_tone) as intersection, intersection || '-' || age as intersection_age
    from (from labels_columns union all by name from {labels});
create view labellers as
    from labellers_columns union all by name from {labellers};
create view readings as
    from readings_columns union all by name from {readings};
create view quality as
    from quality_columns union all by name from {quality};
create view neighbours as
    from neighbours_columns union all by name from {neighbours};
create view estimates as
    from estimates_columns union all by name from {estimates};
create view distances as
    from distances_columns union all by name from {distances};
create view confusion as
    select * replace (coalesce(method, 'clip') as method) from (from confusion_columns union all by name from {confusion});
create view steps as
    select parse_path(filename, 'forward_slash')[-2] as run, * exclude (filename)
    from (from steps_columns union all by name from {steps});
create view runs as
    select parse_path(filename, 'forward_slash')[-2] as run, status, started, finished, device, steps,
        (options ->> 'image_size')::integer as image_size, (options ->> 'batch_size')::integer as batch_size,
        (options ->> 'seed')::bigint as seed, (options ->> 'ema')::double as ema,
        options ->> 'balance' as balance, if(options ->> 'balance' = 'natural', null, options ->> 'balance_by') as balance_by,
        options ->> 'conditional' as conditional,
        (data ->> 'drawn')::boolean as drawn, data ->> 'manifest' as manifest, (data ->> 'images')::bigint as images
    from {runs};

-- The run that is meant: by its name, or the one started last, of those that left something if there are any.
create macro the_run(name) as
    case when name <> 'newest' then name
         else (select runs.run from runs
               left join (select run as begun from steps union select run from samples) on begun = runs.run
               order by begun is not null desc, started desc nulls last, runs.run desc limit 1) end;

-- One row for each image, attribute and labeller: what they said (train, generated), and what the annotations say.
create view stated as
    select source, run, key, method, labeller, gender, age, skin_tone, skin_group, intersection, intersection_age
    from labels where source in ('train', 'generated')
    union all
    select 'annotated', null, key, 'annotated', 'annotated', gender, age, skin_tone, skin_group, intersection, intersection_age
    from images where status = 'packed';
-- A branch an attribute, so that a question about one reads only its column (an unpivot reads all of them).
create view said as
    select source, run, key, method, labeller, 'gender' as attribute, gender as "group" from stated where gender is not null
    union all
    select source, run, key, method, labeller, 'age' as attribute, age as "group" from stated where age is not null
    union all
    select source, run, key, method, labeller, 'skin_tone' as attribute, skin_tone::varchar as "group" from stated where skin_tone is not null
    union all
    select source, run, key, method, labeller, 'skin_group' as attribute, skin_group as "group" from stated where skin_group is not null
    union all
    select source, run, key, method, labeller, 'intersection' as attribute, intersection as "group" from stated where intersection is not null
    union all
    select source, run, key, method, labeller, 'intersection_age' as attribute, intersection_age as "group" from stated where intersection_age is not null;

-- How sure a labeller is of what it said: the probability of the class it chose, where it gives any.
create view confidence as
    select source, run, key, method, 'gender' as attribute, gender as "group", greatest(p_female, p_male) as probability
    from labels where p_female is not null and gender is not null
    union all
    select source, run, key, method, 'age', age, greatest(p_child, p_young, p_adult, p_middle, p_senior)
    from labels where p_child is not null and age is not null
    union all
    select source, run, key, method, 'skin_tone', skin_tone::varchar, greatest(p_tone_1, p_tone_2, p_tone_3, p_tone_4,
        p_tone_5, p_tone_6, p_tone_7, p_tone_8, p_tone_9, p_tone_10)
    from labels where p_tone_1 is not null and skin_tone is not null;

-- Which labeller counts for an attribute: the probe where it was better on images it had not seen, else CLIP.
create view chosen as
    select attribute, coalesce(max(method) filter (chosen), 'clip') as method
    from (select distinct attribute from vocabulary) left join labellers using (attribute) group by attribute;

-- The same, of the labeller that counts: labels from elsewhere do, where there are such.
create view classes as
    select said.* from said join chosen using (attribute)
    where said.method in (chosen.method, 'annotated', 'imported');

-- How often each class was found on each side, by each labeller.
create view counts as
    select source, run, labeller, attribute, "group", coalesce(rank, 1000) as rank, count(*) as count
    from classes left join vocabulary using (attribute, "group")
    group by all;

-- The labellers whose training labels may stand beside a run's samples: the samples' own, or any where there are none.
create macro comparable(name, labeller_) as
    labeller_ in (select labeller from labels where source = 'generated' and labels.run = name)
    or not exists (from labels where source = 'generated' and labels.run = name);

-- A face is called fake where the sigmoid of its logit is at least 0.5.
create macro calls_fake(logit) as 1 / (1 + exp(-logit)) >= 0.5;

-- What detectors of generated faces said, and of whom: an image's groups are its annotations', a sample's are those of the
-- labeller that counts, and where a test set holds both, the labeller's for either. Imported predictions bring their own.
create view predicted as
    from predictions_columns union all by name from {predictions};
create macro counts_for(attribute_, method_) as
    method_ in ('imported', (select chosen.method from chosen where chosen.attribute = attribute_));
create view labelled as  -- just those that are asked for: there may be a million labels and a few predictions
    with wanted as (
        select distinct source, run, key from predicted where grouped_by = 'labelled'
    ), known as (
        select case source when 'train' then 'images' else 'samples' end as source, run, key, method, gender, skin_group, age
        from labels where source in ('train', 'generated')
    )
    select source, run, key, max(gender) filter (counts_for('gender', method)) as gender,
        max(skin_group) filter (counts_for('skin_group', method)) as skin_group, max(age) filter (counts_for('age', method)) as age
    from known semi join wanted on known.key = wanted.key and known.source = wanted.source
        and known.run is not distinct from wanted.run
    group by all;
create view predictions as
    select p.* replace (coalesce(p.part, 'test') as part, coalesce(p.change, 'none') as change,
            coalesce(p.gender, a.gender, l.gender) as gender, coalesce(p.skin_group, a.skin_group, l.skin_group) as skin_group,
            coalesce(p.age, a.age, l.age) as age),
        calls_fake(logit) as called_fake
    from predicted as p
    left join images as a on p.grouped_by = 'annotated' and p.source = 'images' and p.key = a.key and a.status = 'packed'
    left join labelled as l on p.grouped_by = 'labelled' and p.source = l.source and p.run is not distinct from l.run
        and p.key = l.key;
-- Those that a detector is judged by: faces that it did not learn from, each once for every change made to it.
create view judged as
    select *, gender || '-' || skin_group as intersection from predictions where part = 'test';
create view detection as
    from detection_columns union all by name from {detection};

-- Every logit of a group as a threshold: how many fakes and real faces it calls fake (`tp`, `fp`), and how many lie on it.
create view thresholds as
    select detector, change, attribute, "group", logit, fakes, reals, sum(fakes) over earlier as tp, sum(reals) over earlier as fp,
        sum(fakes) over whole as all_fakes, sum(reals) over whole as all_reals
    from (
        select detector, change, attribute, "group", logit, count(*) filter (target = 'fake') as fakes,
            count(*) filter (target = 'real') as reals
        from (
            select detector, change, logit, target, 'all' as attribute, 'all' as "group" from judged
            union all
            select detector, change, logit, target, attribute, "group"
            from judged unpivot ("group" for attribute in (gender, skin_group, age, intersection)))
        group by all)
    window whole as (partition by detector, change, attribute, "group"),
        earlier as (partition by detector, change, attribute, "group" order by logit desc);

-- How well a detector does on each group of faces, by the definitions of scikit-learn and of AI-Face's benchmark.
-- The equal error rate is the FPR at that corner of the ROC curve where FPR and FNR are nearest; the error rate is
-- balanced. Null where a rate is undefined, as an FPR without real faces is.
create view utility as
    with corners as (
        select *, fp / nullif(all_reals, 0) as fpr, tp / nullif(all_fakes, 0) as tpr,
            row_number() over later > 1 and fakes = lead(fakes) over later and reals = lead(reals) over later as straight
        from thresholds window later as (partition by detector, change, attribute, "group" order by logit desc)
    ), ranked as (
        select detector, change, attribute, "group", max(all_fakes)::bigint as fakes, max(all_reals)::bigint as reals,
            sum(reals * (tp - fakes / 2)) / nullif(max(all_fakes) * max(all_reals), 0) as auc,
            if(max(all_reals) > 0, sum(fakes * tp / (tp + fp)) / nullif(max(all_fakes), 0), null) as average_precision,
            if(count(*) > 1, arg_min(fpr, [abs(1 - tpr - fpr), -logit])
                filter (straight is not true and fpr is not null and tpr is not null), null) as eer,
            coalesce(max(tp) filter (calls_fake(logit)), 0) as tp,
            coalesce(max(fp) filter (calls_fake(logit)), 0) as fp
        from corners group by all
    )
    select detector, change, attribute, "group", fakes + reals as n, fakes, reals, auc, average_precision, eer,
        fp / nullif(reals, 0) as fpr, tp / nullif(fakes, 0) as tpr, 1 - tpr as fnr, 1 - fpr as tnr,
        (tp + reals - fp) / (fakes + reals) as accuracy, 1 - (tpr + 1 - fpr) / 2 as error_rate,
        (tp + fp) / (fakes + reals) as positive_rate
    from ranked;

-- How often a detector calls a run's samples fake, with Wilson's interval (J. Am. Stat. Assoc. 22 (1927) 209-212).
create view detected as
    with counted as (
        select detector, run, attribute, "group", count(*) as n, count(*) filter (called_fake) as called_fake,
            1.959964 ** 2 as zz
        from (
            select detector, run, called_fake, 'all' as attribute, 'all' as "group"
            from predictions where source = 'samples' and change = 'none'
            union all
            select detector, run, called_fake, attribute, "group" from (
                select detector, run, called_fake, gender, skin_group, age, gender || '-' || skin_group as intersection
                from predictions where source = 'samples' and change = 'none')
            unpivot ("group" for attribute in (gender, skin_group, age, intersection)))
        group by all
    ), rates as (
        select *, called_fake / n as rate, (called_fake + zz / 2) / (n + zz) as centre,
            sqrt(zz * (called_fake * (n - called_fake) / n + zz / 4)) / (n + zz) as reach
        from counted
    )
    select detector, run, attribute, "group", coalesce(rank, 1000) as rank, n, called_fake, rate,
        if(called_fake = 0, 0, centre - reach) as low, if(called_fake = n, 1, centre + reach) as high
    from rates left join vocabulary using (attribute, "group");

-- How differently a detector treats the groups of an attribute (AI-Face's benchmark): ranges over the groups, and sums of
-- what separates each from all faces. Groups of one target alone are left out of all of them, and named.
create view fairness as
    with known as (  -- all faces whose group is known, as those of another are in none of its groups
        select detector, change, attribute, sum(tpr * fakes) / sum(fakes) as tpr, sum(fpr * reals) / sum(reals) as fpr
        from utility where attribute <> 'all' group by all
    ), compared as (
        select u.*, abs(u.fpr - known.fpr) as from_fpr, abs(u.tpr - known.tpr) as from_tpr
        from utility as u join known using (detector, change, attribute) where u.fakes > 0 and u.reals > 0
    ), left_out as (
        select detector, change, attribute, string_agg("group", ', ' order by "group") as undefined
        from utility where attribute <> 'all' and (fakes = 0 or reals = 0) group by all
    )
    select detector, change, attribute, count(*) as groups, max(auc) - min(auc) as auc_gap, max(fpr) - min(fpr) as fpr_gap,
        max(error_rate) - min(error_rate) as error_rate_gap,
        greatest(max(fpr) - min(fpr), max(fnr) - min(fnr), max(tnr) - min(tnr), max(tpr) - min(tpr)) as f_meo,
        max(positive_rate) - min(positive_rate) as f_dp, max(accuracy) - min(accuracy) as f_oae,
        sum(from_fpr + from_tpr) as f_eo, sum(from_fpr) as f_efpr, any_value(undefined) as undefined
    from compared left join left_out using (detector, change, attribute) group by all;
