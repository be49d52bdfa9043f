-- The group of each attribute that each detector serves worst, by its TPR and by its calibration error.
-- The lowest TPR is at a threshold with at most 1 % or 5 % of all real faces called fake. `is_fpr_1_resolvable` is false with
-- fewer than 100 real faces.
-- param detector (default all): the detector's name, or all
select * exclude (perturbation), held_out_of(detector) as held_out from worst_groups
where perturbation = 'none' and ($detector = 'all' or detector = $detector)
order by evaluation_set, is_trivial(detector), detector, attribute_rank(attribute);
