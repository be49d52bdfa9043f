-- How often each labeller is right on annotated images that it was not fitted to, and which of CLIP and probe counts.
select * from labellers order by attribute, method;
