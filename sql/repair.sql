-- Fairness and utility of each detector with thresholds fitted on one half of the faces and evaluated on the other.
-- As it is (none), with the best threshold for all groups (single), with thresholds by group that equalise TPR and FPR
-- (equalized), and with each group's best threshold (worst_group). `change` is the difference from `none`; `floor` as in
-- `detection_metrics`.
-- param detector (default all): the detector's name, or all
-- param attribute (default every): one of every, @attributes
-- param measure (default all): one of all, equalized_odds_difference, worst_balanced_accuracy, balanced_accuracy, accuracy, tpr, fpr
select *, held_out_of(detector) as held_out from repair
where ($detector = 'all' or detector = $detector) and ($attribute = 'every' or attribute = $attribute)
    and ($measure = 'all' or measure = $measure)
order by evaluation_set, is_trivial(detector), detector, attribute_rank(attribute), measure,
    array_position(['none', 'single', 'equalized', 'worst_group'], variant);
