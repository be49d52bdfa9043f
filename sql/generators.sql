-- How often each detector classifies the fakes of every family and method as fake, with Wilson's 95 % interval.
-- `is_held_out`: whether the fakes were held out of its training (`fairface detect --hold-out`); null if some of them were.
-- param detector (default all): the detector's name, or all
-- param attribute (default all): one of every, all, @attributes
select generators.* from generators left join vocabulary using (attribute, "group")
where ($detector = 'all' or detector = $detector) and ($attribute = 'every' or attribute = $attribute)
order by evaluation_set, is_trivial(detector), detector, family, method <> 'all', method, attribute_rank(attribute), rank, "group";
