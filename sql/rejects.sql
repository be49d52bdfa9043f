-- Images that were not packed, by reason and subset.
select reason, family, subset, count(*) as images, sum(bytes)::bigint as bytes, min(path) as example
from rejects group by reason, family, subset order by images desc, reason, family, subset;
