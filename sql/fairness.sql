-- How differently each detector treats the groups of an attribute: gaps, and the benchmark's and fairlearn's metrics.
-- F_MEO, F_DP, F_OAE, F_EO and F_EFPR are AI-Face's, the equalised-odds difference and ratio fairlearn's.
-- param detector (default all): the detector's name, or all
select * exclude (perturbation), held_out_of(detector) as held_out from fairness
where perturbation = 'none' and ($detector = 'all' or detector = $detector)
order by evaluation_set, is_trivial(detector), detector, attribute_rank(attribute);
