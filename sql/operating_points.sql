-- Each group's TPR and FPR at thresholds that all groups share.
-- The thresholds have an FPR of at most 1 % or 5 % over all real faces (fpr_1, fpr_5), or a TPR of at least 95 % over all fakes
-- (tpr_95). `is_resolvable` is false if there are too few faces for such a rate.
-- param detector (default all): the detector's name, or all
-- param attribute (default every): one of every, all, @attributes
-- param point (default every): one of every, fpr_1, fpr_5, tpr_95
select operating_points.* exclude (perturbation) from operating_points left join vocabulary using (attribute, "group")
where perturbation = 'none' and ($detector = 'all' or detector = $detector)
    and ($attribute = 'every' or attribute = $attribute) and ($point = 'every' or point = $point)
order by evaluation_set, is_trivial(detector), detector, attribute_rank(attribute), rank, "group", point;
