-- Shares of an audited run's samples: by people's labels alone, with the labeller's help (PPI++), corrected and raw.
-- `labels` are the faces whose class people could tell; `labels_needed` would settle an inconclusive verdict.
-- param attribute (default all): one of all, @attributes
-- param run (default newest): the run
select attribute, "group", labels, human, human_low, human_high, audited, audited_low, audited_high, tuned_weight, audited_least,
    audited_most, corrected, corrected_low, corrected_high, share as raw, share_low as raw_low, share_high as raw_high,
    best_reference as reference, ratio, ratio_low, ratio_high, verdict, unaudited_verdict, labels_needed
from estimates left join vocabulary using (attribute, "group")
where run = resolve_run($run) and audited is not null and ($attribute = 'all' or attribute = $attribute)
order by attribute_rank(attribute), rank, "group";
