-- How well detectors tell fakes of generators that they were not trained on from all real test faces, by group.
-- With 95 % intervals. `full_detector` has the same model and options, but was trained on all fakes.
-- param detector (default all): the detector's name, or all
-- param attribute (default every): one of every, all, @attributes
select hold_out.* from hold_out left join vocabulary using (attribute, "group")
where ($detector = 'all' or detector = $detector) and ($attribute = 'every' or attribute = $attribute)
order by evaluation_set, is_trivial(detector), detector, held_out, attribute_rank(attribute), rank, "group";
