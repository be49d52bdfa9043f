-- How well each detector tells generated faces from real ones, over all faces and by group: AUC, rates, errors.
-- param detector (default all): the detector, or all
-- param attribute (default every): one of every, all, gender, age, skin_group, intersection
select utility.* exclude (change) from utility left join vocabulary using (attribute, "group")
where change = 'none' and ($detector = 'all' or detector = $detector) and ($attribute = 'every' or attribute = $attribute)
order by detector, array_position(['all', 'gender', 'age', 'skin_group', 'intersection'], attribute), rank, "group";
