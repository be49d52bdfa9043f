-- Utility of each detector on all faces, and fairness for one attribute, under each image perturbation.
-- param detector (default all): the detector's name, or all
-- param attribute (default gender): one of @attributes
with overall as materialized (
    from utility where attribute = 'all'
)
select u.evaluation_set, u.detector, u.perturbation, u.n, u.auc, u.auc - unperturbed.auc as auc_difference, u.accuracy,
    u.average_precision, u.eer, u.fpr, u.tpr, f.f_meo, f.f_dp, f.f_oae, f.f_eo, f.f_efpr, f.excluded_groups,
    held_out_of(u.detector) as held_out
from overall as u
join overall as unperturbed on unperturbed.evaluation_set = u.evaluation_set and unperturbed.detector = u.detector
    and unperturbed.perturbation = 'none'
left join fairness as f on f.evaluation_set = u.evaluation_set and f.detector = u.detector and f.perturbation = u.perturbation
    and f.attribute = $attribute
where ($detector = 'all' or u.detector = $detector)
order by u.evaluation_set, is_trivial(u.detector), u.detector, u.perturbation <> 'none', u.perturbation;
