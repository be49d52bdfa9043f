-- Accuracy of each labeller on annotated images that it was not fitted to, and which of them is selected.
select * from labellers order by attribute, method;
