"""Sets of tars to read images from: one pack, or several packs combined."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import polars as pl

from shards.documents import ShardEntry, load_shards_json
from shards.errors import FairfaceError
from shards.images_table import read_images
from shards.verify import find_damage, find_undecodable, sample_tar_fault
from shards.workspace import ShardsFolder


class ShardSet:
    """Tars in one folder, and the number of images in each."""

    def __init__(
        self,
        folder: Path,
        shards: Sequence[ShardEntry],
        *,
        table: Path | None,  # images.parquet, with the hash of every image; None for samples
        table_sha256: str | None = None,
        command: str,  # command that writes the tars again
        parent: "ShardSet | None" = None,  # the full set that this is a subset of
        decode: bool = False,  # whether `verify` decodes the images, because the packer did not
    ) -> None:
        self.folder, self.shards, self.command = folder, list(shards), command
        self.table, self.table_sha256 = table, table_sha256
        self.parent, self.decode = parent or self, decode
        self.names = [shard.name for shard in self.shards]
        self.sizes = [shard.images for shard in self.shards]  # images of each tar
        self.images = sum(self.sizes)
        self.verified = False  # whether every byte was checked

    @classmethod
    def open(cls, shards: ShardsFolder) -> "ShardSet":
        """Open a finished pack. Raises FairfaceError if there is none, or if a tar is missing or truncated."""
        document = load_shards_json(shards)
        opened = cls(
            shards.folder,
            document.shards,
            table=shards.images,
            table_sha256=document.files.get(shards.images.name, ""),
            command="fairface shards --force",
            decode=not document.options.get("check"),
        )
        opened.check_names()
        opened.check_files()
        return opened

    @classmethod
    def from_samples(cls, folder: Path, shards: Sequence[ShardEntry]) -> "ShardSet":
        """Open tars of samples. Raises FairfaceError if one of them is missing or truncated."""
        opened = cls(folder, shards, table=None, command="fairface sample --force")
        opened.check_names()
        opened.check_files()
        return opened

    def check_names(self) -> None:
        """Raise FairfaceError if a damaged document names a tar in another folder."""
        if foreign := [name for name in self.names if Path(name).name != name]:
            raise FairfaceError(f"{foreign[0]!r} is not the name of a tar in {self.folder}{self.remedy()}")

    def check_files(self) -> None:
        """Raise FairfaceError unless the tars have the right sizes: DALI 2.4 may crash on a truncated one."""
        for shard in self.shards:
            path = self.folder / shard.name
            if not path.is_file() or path.stat().st_size != shard.bytes or not path.with_suffix(".idx").is_file():
                raise FairfaceError(f"{path} is missing or was changed after it was written{self.remedy()}")
        if self.table and not self.table.is_file():
            raise FairfaceError(f"{self.table} is missing: run `fairface shards` to write it again")

    def remedy(self) -> str:
        """Return what to do about a damaged shard, as the end of a message."""
        verify = f"`fairface verify --out {self.folder.parent}` lists every fault, " if self.table else ""
        return f": {verify}`{self.command}` writes it again"

    def covering(self, indices: range) -> "tuple[ShardSet, int]":
        """Return the tars that hold the images `indices` (in tar order), and the index of the first image in them."""
        kept: list[ShardEntry] = []
        start = first = 0
        for shard in self.shards:
            if start < indices.stop and start + shard.images > indices.start:
                first = first if kept else start
                kept.append(shard)
            start += shard.images
        subset = ShardSet(
            self.folder,
            kept,
            table=self.table,
            table_sha256=self.table_sha256,
            command=self.command,
            parent=self.parent,
            decode=self.decode,
        )
        return subset, first

    @cached_property
    def packed(self) -> pl.DataFrame:
        """The packed images: shard, key, bytes and sha256 of each."""
        if self.table is None:
            raise TypeError("samples have no table of packed images")
        columns = ("shard", "key", "bytes", "sha256", "status")
        return read_images(self.table, columns, sha256=self.table_sha256).filter(status="packed")

    def verify(self, *, workers: int | None = None) -> None:
        """Check every byte once, and decode the images of a pack that was made without decoding.

        Bytes that changed after packing, and images that DALI can't decode, can make its CPU decoder crash the process.
        Raises FairfaceError that names the first fault.
        """
        if self.verified:
            return
        if self.table:
            packed = self.parent.packed.filter(pl.col("shard").is_in(self.names))
            if faults := find_damage(ShardsFolder(self.folder), packed, decode=self.decode, workers=workers):
                raise FairfaceError(f"{self.folder}/{faults[0]}{self.remedy()}")
        else:
            for shard in self.shards:
                if fault := sample_tar_fault(path := self.folder / shard.name, shard.sha256):
                    raise FairfaceError(f"{path} {fault}{self.remedy()}")
        self.verified = True

    def check_decodable(self, *, workers: int | None = None) -> None:
        """Raise FairfaceError that names the first image that DALI cannot decode, if there is one."""
        if fault := find_undecodable([self.folder / name for name in self.names], workers=workers):
            raise FairfaceError(f"{self.folder}/{fault}{self.remedy()}")


class ConcatShards(ShardSet):
    """Several packs combined: the image indices of each pack continue those of the one before."""

    def __init__(self, parts: Sequence[ShardSet]) -> None:
        # absolute names, because they are joined to the folder of the first part
        listed = [
            replace(shard, name=str((part.folder / shard.name).absolute())) for part in parts for shard in part.shards
        ]
        super().__init__(parts[0].folder, listed, table=None, command=parts[0].command)
        self.parts = list(parts)

    def covering(self, indices: range) -> "tuple[ConcatShards, int]":
        """Return the tars that hold the images `indices` (in tar order), and the index of the first image in them."""
        kept: list[ShardSet] = []
        start = first = 0
        for part in self.parts:
            own = range(max(indices.start - start, 0), min(indices.stop - start, part.images))
            if own:
                subset, before = part.covering(own)
                first = first if kept else start + before
                kept.append(subset)
            start += part.images
        return ConcatShards(kept), first

    def verify(self, *, workers: int | None = None) -> None:
        """Check every byte of every pack once."""
        if not self.verified:
            for part in self.parts:
                part.verified = False
                part.verify(workers=workers)
            self.verified = True

    def check_decodable(self, *, workers: int | None = None) -> None:
        """Raise FairfaceError that names the first image that DALI cannot decode, if there is one."""
        for part in self.parts:
            part.check_decodable(workers=workers)
