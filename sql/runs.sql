-- Every training run: when and on what device it was trained, its options and its data.
from runs order by started desc nulls last, run desc;
