"""The context of all benchmarks: synthetic JPEGs, their shards, a device, and folders for temporary files."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shards.workspace import Workspace

if TYPE_CHECKING:  # the memory of a fresh process that imports a benchmark is measured without torch
    import torch

    from pipeline.data.shard_set import ShardSet

SIZE = 64  # pixels of everything after the decoder
SHARD_IMAGES = 256
WORLDS = 120  # default number of simulated worlds of each scenario


@dataclass(frozen=True)
class SizesConfig:
    """The sizes of what is measured."""

    images: int = 2000  # synthetic JPEGs
    evaluated_faces: int = 100_000  # of the metrics in the stage `detect`


@dataclass(frozen=True)
class WorldsConfig:
    """The options of the stages `estimates` and `audit`, which simulate worlds: populations with known shares."""

    labelled_faces: Path | None = None  # CSV of real faces' classes and labels, to resample worlds from
    count: int = WORLDS  # worlds of each scenario


@dataclass(frozen=True)
class TrialsConfig:
    """The options of the stage `gan`."""

    annotated_faces: Path | None = None  # folder of images to train on; None: synthetic faces
    seconds: float = 90  # training time of each trial
    seeds: int = 3  # trials of each recipe
    recipes: tuple[str, ...] = ()  # names of the recipes to train; empty: all


@dataclass(frozen=True)
class BenchContext:
    """The inputs of every benchmark, below one temporary folder."""

    root: Path
    device: "torch.device"
    sizes: SizesConfig = SizesConfig()
    worlds: WorldsConfig = WorldsConfig()
    trials: TrialsConfig = TrialsConfig()

    @property
    def faces(self) -> Path:
        """The folder of the synthetic JPEGs of 256x256 pixels."""
        return self.root / "faces"

    @property
    def workspace(self) -> Workspace:
        """An OUT folder, whose shards are packed by `shards`."""
        return Workspace(self.root / "out")

    def scratch(self, name: str) -> Path:
        """Return the path of a file or folder that only one benchmark uses."""
        return self.root / name

    def shards(self) -> "ShardSet":
        """Return the shards of the JPEGs, which the first call packs."""
        from pipeline.data.shard_set import ShardSet
        from shards import pack
        from shards.plan import PackConfig

        shards = self.workspace.shards
        if not shards.document.exists():
            pack.pack(self.faces, shards, PackConfig(shard_images=SHARD_IMAGES), progress=False)
        return ShardSet.open(shards)
