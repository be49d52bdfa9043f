-- People's answers in a run's audit: faces, "can't tell", agreement among raters, and a test of the labeller's errors.
-- `errors_p` is small where the labeller's errors on the samples are not those on photographs; `close` counts neighbouring classes.
-- param run (default newest): the run
from audit where run = resolve_run($run) order by source, attribute_rank(attribute);
