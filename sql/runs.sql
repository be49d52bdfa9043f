-- Every training run: when, on what, with which options, on which data.
from runs order by started desc nulls last, run desc;
