-- The thresholds of question `repair`, by group: a face with this logit or a larger one is called fake; with inf, none is.
-- On other faces, use the thresholds that were fitted on all faces.
-- param detector (default all): the detector's name, or all
-- param attribute (default gender): one of @attributes
-- param fitted_on (default all): one of all, first half, second half
select repair_thresholds.* from repair_thresholds left join vocabulary using (attribute, "group")
where ($detector = 'all' or detector = $detector) and attribute = $attribute and fitted_on = $fitted_on
order by evaluation_set, is_trivial(detector), detector, variant, rank;
