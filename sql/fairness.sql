-- Differences between the groups of an attribute: gaps, and F_MEO, F_DP, F_OAE, F_EO, F_EFPR of AI-Face's benchmark.
-- param detector (default all): the detector's name, or all
select * exclude (perturbation), held_out_of(detector) as held_out from fairness where perturbation = 'none' and ($detector = 'all' or detector = $detector)
order by detector, attribute_rank(attribute);
