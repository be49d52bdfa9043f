-- How well each detector separates generated from real faces, overall and by group: AUC, rates, errors.
-- param detector (default all): the detector's name, or all
-- param attribute (default every): one of every, all, @attributes
select utility.* exclude (perturbation), held_out_of(detector) as held_out from utility left join vocabulary using (attribute, "group")
where perturbation = 'none' and ($detector = 'all' or detector = $detector)
    and ($attribute = 'every' or attribute = $attribute)
order by evaluation_set, is_trivial(detector), detector, attribute_rank(attribute), rank, "group";
