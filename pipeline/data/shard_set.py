"""The packed tars that are read: one pack, or several as one."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import polars as pl

from shards.atomic_io import file_sha256, read_parquet
from shards.errors import FairfaceError
from shards.verify import find_damage, load_shards_json


class ShardSet:
    """A folder of packed tars: what `shards.json` (or a list of tar names and sizes) says of it."""

    def __init__(
        self, folder: Path, shards: list[dict], table: Path | None, command: str, whole: "ShardSet | None" = None
    ):
        self.folder, self.shards, self.table, self.command = folder, shards, table, command
        self.whole = whole or self  # those that these are some of
        self.names, self.images = [shard["name"] for shard in shards], sum(shard["images"] for shard in shards)
        self.sound = False  # whether every byte has been looked at

    @classmethod
    def open(cls, folder: Path) -> "ShardSet":
        """The finished pack in `folder`. Raises FairfaceError where there is none."""
        packed = load_shards_json(folder)
        return cls(folder, packed["shards"], folder / "images.parquet", "fairface shards --force").checked()

    @classmethod
    def of_samples(cls, folder: Path, shards: list[dict]) -> "ShardSet":
        """Tars of samples, which are drawn again rather than verified."""
        return cls(folder, shards, None, "fairface sample --force").checked()

    def checked(self) -> "ShardSet":
        """Itself, if the tars have their sizes: DALI 2.4 may crash the process on a cut file."""
        for shard in self.shards:
            path = self.folder / shard["name"]
            if not path.exists() or path.stat().st_size != shard["bytes"] or not path.with_suffix(".idx").exists():
                raise FairfaceError(f"{path} is missing or not as it was written{self.remedy()}")
        if self.table and not self.table.is_file():
            raise FairfaceError(f"{self.table} is missing: `fairface shards` makes it again")
        return self

    def remedy(self) -> str:
        """What to do about a damaged shard."""
        verify = f"`fairface verify --out {self.folder.parent}` lists every fault, " if self.table else ""
        return f": {verify}`{self.command}` writes it again"

    def holding(self, numbers: range) -> tuple["ShardSet", int]:
        """The shards that hold the images `numbers` (in tar order), and the number of the first image in them."""
        kept, start, first = [], 0, 0
        for shard in self.shards:
            if start < numbers.stop and start + shard["images"] > numbers.start:
                first = first if kept else start
                kept.append(shard)
            start += shard["images"]
        return ShardSet(self.folder, kept, self.table, self.command, self.whole), first

    @cached_property
    def packed(self) -> pl.DataFrame:
        """What was packed: shard, key, bytes and sha256 of every image."""
        return read_parquet(self.table, ["shard", "key", "bytes", "sha256"])

    def verify(self, workers: int | None = None, decode: bool = False) -> None:
        """Looks at every byte, once, and decodes it if asked to.

        What rots after packing makes DALI's decoder on a CPU crash the process. Raises FairfaceError that names the first
        fault.
        """
        if self.sound:
            return
        if not self.table:
            for shard in self.shards:
                if "sha256" in shard and file_sha256(self.folder / shard["name"]) != shard["sha256"]:
                    raise FairfaceError(f"{self.folder / shard['name']} is not as it was written{self.remedy()}")
            self.sound = True
            return
        packed = self.whole.packed.filter(pl.col("shard").is_in(self.names))
        if faults := find_damage(self.folder, packed, decode, workers):
            raise FairfaceError(f"{self.folder}/{faults[0]}{self.remedy()}")
        self.sound = True


class ConcatShards(ShardSet):
    """Several packs as one, in their order: the images' numbers go on from one to the next."""

    def __init__(self, parts: Sequence[ShardSet]):
        listed = [{**shard, "name": str(part.folder / shard["name"])} for part in parts for shard in part.shards]
        super().__init__(parts[0].folder, listed, None, parts[0].command)
        self.parts = parts

    def holding(self, numbers: range) -> tuple["ShardSet", int]:
        """As of one pack."""
        kept, start, first = [], 0, 0
        for part in self.parts:
            mine = range(max(numbers.start - start, 0), min(numbers.stop - start, part.images))
            if mine:
                some, before = part.holding(mine)
                first = first if kept else start + before
                kept.append(some)
            start += part.images
        return ConcatShards(kept), first

    def verify(self, workers: int | None = None, decode: bool = False) -> None:
        """As of one pack."""
        if not self.sound:
            for part in self.parts:
                part.sound = False
                part.verify(workers, decode)
            self.sound = True
