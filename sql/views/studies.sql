-- The views of studies. A name in braces is replaced by the files of that view below OUT.

-- Every run of every study, with its progress from the run's own record if there is one: it is newer than study.json.
create view study_runs as
    with planned as (
        select name as study, list_position(list_transform(arms, lambda one: one.name), run.arm) as arm_rank, run.*
        from (select name, arms, unnest(runs) as run from {studies})
    ), records as (
        select parse_path(filename, 'forward_slash')[-3] as study, run, status, reason, seconds from {study_records}
    )
    select study, arm, arm_rank, seed, run, trained_run, coalesce(records.status, planned.status) as status,
        if(records.run is null, planned.reason, records.reason) as reason, coalesce(records.seconds, planned.seconds) as seconds
    from planned left join records using (study, run);
create view study_estimates as
    from study_estimates_columns union all by name from {study_estimates};
create view study_paired as
    from study_paired_columns union all by name from {study_paired};
create macro arm_rank(study_, arm_) as (select any_value(arm_rank) from study_runs where study = study_ and arm = arm_);
