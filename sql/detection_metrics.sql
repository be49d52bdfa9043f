-- Every metric of `utility` and `fairness` with its 95 % interval, as computed by the last `detect` or `report`.
-- `floor` is what equal treatment would exceed in only 5 % of test sets: a smaller gap may be chance, and so may a ratio or a
-- worst group's TPR that is larger.
-- param detector (default all): the detector's name, or all
-- param measure (default all): a metric such as auc, fpr or f_eo, or all
select detection_metrics.*, held_out_of(detector) as held_out from detection_metrics left join vocabulary using (attribute, "group")
where ($detector = 'all' or detector = $detector) and ($measure = 'all' or measure = $measure)
order by evaluation_set, is_trivial(detector), detector, attribute_rank(attribute), rank nulls last, measure;
