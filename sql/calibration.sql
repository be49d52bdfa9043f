-- How far each detector's probabilities are from the shares of fakes, overall and by group.
-- `ece` is the expected calibration error, which chance makes positive; `squared_error` is the mean squared calibration error
-- without that bias, and `calibration_error` its root.
-- param detector (default all): the detector's name, or all
-- param attribute (default every): one of every, all, @attributes
select calibration.* exclude (perturbation) from calibration left join vocabulary using (attribute, "group")
where perturbation = 'none' and ($detector = 'all' or detector = $detector)
    and ($attribute = 'every' or attribute = $attribute)
order by evaluation_set, is_trivial(detector), detector, attribute_rank(attribute), rank, "group";
