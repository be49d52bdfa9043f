-- Annotation rows without an image and images without a row, by subset: missing, or ambiguous if several match.
select what, reason, family, subset, count(*) as paths, min(path) as example
from unmatched group by what, reason, family, subset order by paths desc, what, reason, family, subset;
