-- Accuracy of each labelling method on annotated images that it was not fitted to, and the selected method.
select * from labellers order by attribute, method;
