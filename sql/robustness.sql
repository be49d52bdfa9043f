-- What blur, JPEG, colours, crops and turns do to each detector: utility over all faces, and the fairness figures of one attribute.
-- param detector (default all): the detector, or all
-- param attribute (default gender): one of gender, age, skin_group, intersection
select u.detector, u.change, u.n, u.auc, u.auc - none.auc as auc_difference, u.accuracy, u.average_precision, u.eer, u.fpr, u.tpr,
    f.f_meo, f.f_dp, f.f_oae, f.f_eo, f.f_efpr, f.undefined
from utility as u join utility as none on none.detector = u.detector and none.change = 'none' and none.attribute = 'all'
left join fairness as f on f.detector = u.detector and f.change = u.change and f.attribute = $attribute
where u.attribute = 'all' and ($detector = 'all' or u.detector = $detector)
order by u.detector, u.change <> 'none', u.change;
