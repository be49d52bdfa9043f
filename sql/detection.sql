-- Every figure of `utility` and `fairness` with its 95 % interval, as of the last `detect` or `report`; `floor`: what equal treatment shows.
-- param detector (default all): the detector, or all
-- param measure (default all): such as auc, fpr, f_eo
select detection.* from detection left join vocabulary using (attribute, "group")
where ($detector = 'all' or detector = $detector) and ($measure = 'all' or measure = $measure)
order by detector, array_position(['all', 'gender', 'age', 'skin_group', 'intersection'], attribute), rank nulls last, measure;
