-- Every metric of `utility` and `fairness` with its 95 % interval, as computed by the last `detect` or `report`.
-- `floor` is the value that a detector with equal rates for all groups would exceed in only 5 % of evaluation sets of this
-- size, or fall below if larger is fairer (ratios, a worst group's TPR): a value on the fair side of it may be chance.
-- param detector (default all): the detector's name, or all
-- param measure (default all): a metric such as auc, fpr or f_eo, or all
select detection_metrics.*, held_out_of(detector) as held_out from detection_metrics left join vocabulary using (attribute, "group")
where ($detector = 'all' or detector = $detector) and ($measure = 'all' or measure = $measure)
order by evaluation_set, is_trivial(detector), detector, attribute_rank(attribute), rank nulls last, measure;
