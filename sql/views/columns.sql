-- The columns of every kind of file below OUT. Each table `<view>_columns` is empty: it fixes the types, adds missing
-- columns as nulls, and replaces a view that has no files.

create table images_columns (key varchar, shard varchar, path varchar, family varchar, subset varchar, split varchar,
    width integer, height integer, orientation tinyint, bytes bigint, sha256 varchar, {stored}, target varchar,
    status varchar, reason varchar);
create table unmatched_columns (what varchar, reason varchar, path varchar, family varchar, subset varchar);
create table samples_columns (key varchar, run varchar, checkpoint varchar, seed bigint, index bigint, shard varchar, requested varchar,
    path varchar);
create table labels_columns (key varchar, source varchar, run varchar, method varchar, labeller varchar, size integer,
    {labelled}, typology_angle float, {probabilities}, filename varchar);
create table labellers_columns (attribute varchar, method varchar, labeller varchar, n bigint, accuracy double,
    balanced_accuracy double, unsure double, selected boolean);
create table estimates_columns (run varchar, attribute varchar, "group" varchar, method varchar, n bigint, count bigint,
    share double, share_low double, share_high double, reference_n bigint, reference_count bigint, reference double,
    reference_low double, reference_high double, corrected double, corrected_low double, corrected_high double,
    annotated double, best_estimate varchar, correction_note varchar, strata varchar, is_shifted boolean, unsure bigint,
    best_share double, best_share_low double, best_share_high double,
    best_reference double, best_reference_low double, best_reference_high double,
    best_reference_n bigint, ratio double, ratio_low double, ratio_high double, verdict varchar, inconclusive_reason varchar,
    significant boolean, n_needed bigint, human double, human_low double, human_high double, audited double, audited_low double,
    audited_high double, labels bigint, labels_needed bigint, unaudited_verdict varchar, audited_least double, audited_most double,
    tuned_weight double);
create table method_estimates_columns (run varchar, attribute varchar, "group" varchar, method varchar, labeller varchar,
    estimate varchar, share double, low double, high double, reference double, ratio double, used boolean);
create table reference_estimates_columns (run varchar, attribute varchar, "group" varchar, baseline varchar, estimate varchar,
    n bigint, count bigint, share double, share_low double, share_high double, reference double, reference_low double,
    reference_high double, reference_n bigint, ratio double, ratio_low double, ratio_high double, verdict varchar, significant boolean);
create table distances_columns (run varchar, attribute varchar, estimate varchar, measure varchar, baseline varchar,
    value double, low double, high double, null_floor double);
create table confusion_columns (method varchar, labeller varchar, attribute varchar, annotated varchar, labelled varchar,
    count bigint);
create table quality_columns (run varchar, attribute varchar, "group" varchar, n bigint, kernel_distance double,
    kernel_low double, kernel_high double, kernel_floor double, coverage double, coverage_floor double,
    vendi double, vendi_real double, vendi_floor double);
create table confidence_shift_columns (run varchar, attribute varchar, method varchar, held_out bigint, generated bigint,
    confidence_held_out double, confidence_generated double, statistic double, floor double, unsure_held_out double,
    unsure_generated double);
create table audit_faces_columns (face integer, source varchar, key varchar, round integer, stratum varchar, probability double,
    filename varchar);
create table ratings_columns (source varchar, key varchar, rater varchar, attribute varchar, "group" varchar, file varchar,
    filename varchar);
create table audit_columns (run varchar, attribute varchar, source varchar, design varchar, looks bigint, planned bigint,
    answered bigint, classified bigint, cant_tell double, raters bigint, rated_twice bigint, alpha_nominal double,
    alpha_nominal_low double, alpha_nominal_high double, alpha_ordinal double, alpha_ordinal_low double, alpha_ordinal_high double,
    same double, same_low double, same_high double, close double, close_low double, close_high double, errors_p double);
create table audit_confusion_columns (run varchar, attribute varchar, seen varchar, labelled varchar, faces double, share double,
    share_low double, share_high double, photographs bigint, photographs_share double);
create table neighbours_columns (run varchar, source varchar, key varchar, nearest varchar, similarity double, images_searched bigint);
create table predictions_columns (key varchar, detector varchar, part varchar, source varchar, run varchar, perturbation varchar,
    grouped_by varchar, target varchar, logit double, {stored});
create table detection_metrics_columns (faces_of varchar, detector varchar, attribute varchar, "group" varchar, measure varchar,
    value double, low double, high double, floor double);
create table tradeoff_points_columns (faces_of varchar, detector varchar, attribute varchar, point varchar, measure varchar,
    value double, low double, high double, floor double, replicates double[]);
create table repair_columns (faces_of varchar, detector varchar, attribute varchar, variant varchar, measure varchar,
    value double, low double, high double, floor double, change double, change_low double, change_high double);
create table repair_thresholds_columns (faces_of varchar, detector varchar, attribute varchar, "group" varchar, variant varchar,
    fitted_on varchar, threshold double);
create table rate_estimates_columns (run varchar, detector varchar, attribute varchar, "group" varchar, correction varchar,
    note varchar, rate double, low double, high double, floor double);
create table detectors_columns (name varchar, status varchar, steps bigint, requested_options json,
    data struct(manifest varchar, held_out varchar[]), filename varchar);
create table steps_columns (step bigint, epoch bigint, images bigint, seconds double, loss_d float, loss_g float,
    d_real float, d_fake float, images_per_s float, data_wait float, filename varchar);
create table runs_columns (status varchar, started varchar, finished varchar, device varchar, steps bigint, options json, data json,
    filename varchar);
create table studies_columns (name varchar, arms struct(name varchar)[], runs struct(arm varchar, seed bigint, run varchar,
    trained_run varchar, status varchar, reason varchar, seconds json)[], filename varchar);
create table study_records_columns (run varchar, status varchar, reason varchar, seconds json, filename varchar);
create table study_estimates_columns (study varchar, arm varchar, seed bigint, run varchar, attribute varchar, "group" varchar,
    metric varchar, baseline varchar, estimate varchar, used boolean, n bigint, seeds bigint, value double, low double, high double,
    seed_sd double, seed_sd_low double, seed_sd_high double, sampling_sd double, calibration_sd double);
create table study_paired_columns (study varchar, arm varchar, compared_with varchar, attribute varchar, "group" varchar,
    metric varchar, baseline varchar, estimate varchar, used boolean, pairs bigint, value double, compared_value double, difference double, low double, high double,
    sd double, p double, sign_flip_p double, least_sign_flip_p double, significant boolean, verdict varchar, seeds_needed bigint);

