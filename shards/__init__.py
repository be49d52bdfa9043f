"""Images on disk become shards that a GPU can eat."""

import os


def cpus() -> int:
    """Cores that this process may use, which under SLURM are fewer than the machine's."""
    return len(os.sched_getaffinity(0))
