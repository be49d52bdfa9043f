-- People's answers in a run's audit: faces, "can't tell", agreement among raters, and a test of the labeller's errors.
-- `same` and `close` are shares of pairs of answers: equal, or at most one class apart. `errors_p` is small if the
-- labeller's errors on the samples differ from those on photographs.
-- param run (default newest): the run
from audit where run = resolve_run($run) order by source, attribute_rank(attribute);
