-- Differences between the groups of an attribute: gaps, F_MEO, F_DP, F_OAE, F_EO and F_EFPR of AI-Face's benchmark, and
-- fairlearn's equalised-odds difference and ratio.
-- param detector (default all): the detector's name, or all
select * exclude (perturbation), held_out_of(detector) as held_out from fairness
where perturbation = 'none' and ($detector = 'all' or detector = $detector)
order by evaluation_set, is_trivial(detector), detector, attribute_rank(attribute);
