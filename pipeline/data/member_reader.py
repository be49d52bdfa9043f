"""Random access to the coded images of packed tars."""

import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from torch import Tensor

from pipeline.data.shard_set import ShardSet
from shards import tar
from shards.concurrency import generator_threads, map_in_order

MAX_OPEN_FILES = 256  # a process can open only a limited number
READ_AHEAD = 4  # batches

T = TypeVar("T")


class MemberReader:
    """Reads the coded bytes of any image of a shard set, by its index in tar order."""

    def __init__(self, shards: ShardSet, prefetch_tars: bool) -> None:
        self.open_files: dict[int, int] = {}  # shard number -> file descriptor, longest open first
        self.paths, self.prefetch_tars = [shards.folder / name for name in shards.names], prefetch_tars
        locations = [list(tar.read_index(path).values()) for path in self.paths]
        self.shard = np.repeat(np.arange(len(locations)), [len(members) for members in locations])
        self.location = np.array([pair for members in locations for pair in members], dtype=np.int64)  # offset, bytes

    def read(self, indices: Tensor) -> list[np.ndarray]:
        """Return the coded images, uint8 [bytes] each."""
        return [
            np.frombuffer(os.pread(self._file(int(self.shard[i])), int(size), int(offset)), np.uint8)
            for i, (offset, size) in zip(indices.tolist(), self.location[indices.numpy()], strict=True)
        ]

    def _file(self, shard: int) -> int:
        """Return the file descriptor of an open tar; the one open longest is closed when there are too many."""
        if shard not in self.open_files:
            if len(self.open_files) >= MAX_OPEN_FILES:
                os.close(self.open_files.pop(next(iter(self.open_files))))
            self.open_files[shard] = os.open(self.paths[shard], os.O_RDONLY)
            if self.prefetch_tars:  # every byte will be needed soon, in small reads all over the file
                os.posix_fadvise(self.open_files[shard], 0, 0, os.POSIX_FADV_WILLNEED)
        return self.open_files[shard]

    def __del__(self) -> None:
        for file in self.open_files.values():
            os.close(file)


def read_ahead(read: Callable[[Tensor], T], batches: Iterator[Tensor]) -> Iterator[T]:
    """Yield `read(batch)` for each batch; a thread reads READ_AHEAD batches ahead."""
    with generator_threads(1) as pool:
        for _, coded in map_in_order(pool, read, ((batch,) for batch in batches), ahead=READ_AHEAD):
            yield coded
