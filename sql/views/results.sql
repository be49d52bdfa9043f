-- The views of images, labels, runs and estimates. A name in braces is replaced by the files of that view below OUT.

-- Every class of every attribute, including those that no image has: its rank, the classes of the parent or the attributes
-- that it is made of, its faces in a sentence, its colour, and its description for a zero-shot labeller.
create table attribute_classes as  -- a table: planning over a view of this many values takes longer than the queries
    from (values
        {classes}
    ) as classes (attribute, title, "group", rank, made_of, faces, colour, prompt);
create view attributes as
    from attribute_classes;
create view vocabulary as
    select attribute, "group", rank from attribute_classes;
create macro attribute_rank(name) as array_position([{attributes}], name);

create view image_rows as
    from images_columns union all by name from {images};
create view label_rows as
    from labels_columns union all by name from {labels};
create view images as
    select *, {is_annotated} as is_annotated, {crosses}
    from (select * {recompute_derived} from image_rows);
create view rejects as
    select key, path, family, subset, split, bytes, reason from images where status = 'rejected';
create view unmatched as
    from unmatched_columns union all by name from {unmatched};
create view samples as
    from samples_columns union all by name from {samples};
create view labels as
    select * exclude (filename), {crosses}
    from (select *, {derived} from label_rows);
create view labellers as
    from labellers_columns union all by name from {labellers};
create view method_estimates as
    from method_estimates_columns union all by name from {method_estimates};
create view quality as
    from quality_columns union all by name from {quality};
create view neighbours as
    from neighbours_columns union all by name from {neighbours};
create view confidence_shift as
    from confidence_shift_columns union all by name from {confidence_shift};
create view estimates as
    from estimates_columns union all by name from {estimates};
create view reference_estimates as
    from reference_estimates_columns union all by name from {reference_estimates};
create view distances as
    from distances_columns union all by name from {distances};
create view confusion as
    from confusion_columns union all by name from {confusion};
create view audit as
    from audit_columns union all by name from {audit};
create view audit_confusion as
    from audit_confusion_columns union all by name from {audit_confusion};
-- How often detectors call a run's samples fake: the rate of a group or, in rows without a group, the gap between groups.
create view rate_estimates as
    from rate_estimates_columns union all by name from {rate_estimates};
-- The faces that the plan of a run's audit chose, and people's answers; an answer without a group is "can't tell".
create view audit_faces as
    select parse_path(filename, 'forward_slash')[-3] as run, * exclude (filename)
    from (from audit_faces_columns union all by name from {audit_faces});
create view ratings as
    select parse_path(filename, 'forward_slash')[-3] as run, * exclude (filename)
    from (from ratings_columns union all by name from {ratings});
create view steps as
    select parse_path(filename, 'forward_slash')[-2] as run, * exclude (filename)
    from (from steps_columns union all by name from {steps});
create view runs as
    select parse_path(filename, 'forward_slash')[-2] as run, status, started, finished, device, steps,
        try_cast(options ->> 'image_size' as integer) as image_size, try_cast(options ->> 'batch_size' as integer) as batch_size,
        try_cast(options ->> 'seed' as bigint) as seed, try_cast(options ->> 'ema' as double) as ema,
        options ->> 'balance' as balance, if(options ->> 'balance' = 'natural', null, options ->> 'balance_by') as balance_by,
        options ->> 'conditional' as conditional, try_cast(data ->> 'synthetic' as boolean) as synthetic,
        data ->> 'manifest' as manifest, try_cast(data ->> 'images' as bigint) as images
    from {runs};

-- A run's name; `newest` is the run started last, among those with steps or samples if there are any.
create macro resolve_run(name) as
    case when name <> 'newest' then name
         else (select runs.run from runs
               left join (select run as run_with_results from steps union select run from samples)
                   on run_with_results = runs.run
               order by run_with_results is not null desc, started desc nulls last, runs.run desc limit 1) end;

-- One row for each image and method, a column for each attribute: labels of both sides (train, generated), and annotations.
create view labels_wide as
    select source, run, key, method, labeller, {columns}
    from labels where source in ('train', 'generated')
    union all
    select 'annotated', null, key, 'annotated', 'annotated', {columns}
    from images where status = 'packed';
-- One row for each image, method and attribute. Each attribute has its own branches, so that a question about one attribute
-- reads only its column (an unpivot would read all of them). They bypass the views, because each view slows planning, which
-- takes as long as counting.
create view labels_long as
    {branches};

-- A labeller's confidence: the probability of the class that it assigned, for labellers that give probabilities.
create view confidence as
    {confidence};

-- The method whose labels are used for an attribute: the one with the highest balanced accuracy on
-- held-out images, by default CLIP.
create view selected_method as
    select attribute, coalesce(max(method) filter (selected), 'clip') as method
    from (select distinct attribute from vocabulary) left join labellers using (attribute) group by attribute;

-- The method whose labels are used for each attribute of a run: imported labels, if it has any.
create macro run_methods(run_) as table
    select attribute, coalesce((select any_value(method) from labels where run = run_ and method = 'imported'), method) as method
    from selected_method;

-- The labels of that method, the annotations, and imported labels.
create view selected_labels as
    select labels_long.* from labels_long join selected_method using (attribute)
    where labels_long.method in (selected_method.method, 'annotated', 'imported');

-- Faces of each class by side, run and method; a class may have several rows. All attributes are counted in one pass, with
-- few grouping sets. Each file of labels has one side, run and method: grouping by file is several times faster.
create view class_counts as
    with faces as (
        select filename, {labelled_columns} from label_rows
        union all
        select 'annotated', {labelled_columns} from image_rows where status = 'packed'
    ), counts as materialized (
        select filename, {labelled_columns}, grouping({labelled_columns}) as grouping_id, count(*) as n
        from faces group by grouping sets ({grouping_sets})
    ), sides as (
        select filename, any_value(source) as source, any_value(run) as run, any_value(method) as method,
            any_value(labeller) as labeller
        from label_rows group by filename
        union all
        values ('annotated', 'annotated', null, 'annotated', 'annotated')
    )
    select source, run, method, labeller, attribute, "group", n
    from (select filename, n, unnest([{counted_classes}], recursive := true) from counts) join sides using (filename)
    where "group" is not null and source in ('train', 'generated', 'annotated');

-- The number of faces of each class, by side, run and labeller, from the selected method, annotations and imports.
create view label_counts as
    select source, run, labeller, attribute, "group", coalesce(rank, 1000) as rank, sum(n)::bigint as count
    from class_counts join selected_method using (attribute) left join vocabulary using (attribute, "group")
    where class_counts.method in (selected_method.method, 'annotated', 'imported')
    group by all;

-- Whether a labeller's training labels can be compared with a run's samples: it must be the samples' own labeller, unless
-- the samples have no labels.
create macro is_comparable(name, labeller_) as
    labeller_ in (select labeller from labels where source = 'generated' and labels.run = name)
    or not exists (from labels where source = 'generated' and labels.run = name);
