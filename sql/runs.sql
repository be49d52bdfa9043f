-- Every training run: when and where it was trained, its options and its data.
from runs order by started desc nulls last, run desc;
