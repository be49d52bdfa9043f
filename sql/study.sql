-- Which stage has each run of a study reached, how many seconds did its stages take, and why did it fail?
-- param study (default all): the study's name, or all
select study, arm, seed, run, nullif(trained_run, run) as trained_as, status, try_cast(seconds ->> 'train' as double) as train_seconds,
    try_cast(seconds ->> 'sample' as double) as sample_seconds, try_cast(seconds ->> 'label' as double) as label_seconds, reason
from study_runs where $study = 'all' or study = $study
order by study, arm_rank, seed;
