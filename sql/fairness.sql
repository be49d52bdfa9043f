-- How differently each detector treats the groups of an attribute: the gaps and F_MEO, F_DP, F_OAE, F_EO, F_EFPR of AI-Face's benchmark.
-- param detector (default all): the detector, or all
select * exclude (change) from fairness where change = 'none' and ($detector = 'all' or detector = $detector)
order by detector, array_position(['gender', 'age', 'skin_group', 'intersection'], attribute);
