"""The images and labels that a DCGAN is trained on, and their order."""

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl
import torch
from torch import Tensor

from pipeline.data.sampler import (
    BalancedSampler,
    NaturalSampler,
    RankSlice,
    Sampler,
    iterate_batches,
    target_shares,
)
from pipeline.data.shard_set import ShardSet
from pipeline.gan.options import GanOptions
from shards import distributed
from shards.attributes import workspace_attributes
from shards.documents import DataSource, ShardsDocument, load_shards_json
from shards.errors import FairfaceError
from shards.images_table import SCHEMA, read_images, with_crosses
from shards.workspace import Workspace

OTHER_LABELS = ("target", "family", "subset")  # that a run can be balanced by or conditioned on, besides attributes


@dataclass
class ConditionClasses:
    """The groups of the label that conditional networks are conditioned on."""

    shares: dict[str, float]  # of each class among the images; a class's position is its number
    numbers: Tensor  # the class of each image in tar order, int64 [images]; -1 if the label is missing

    @classmethod
    def from_images(cls, images: pl.DataFrame, options: GanOptions) -> "ConditionClasses":
        """The classes of the label column `options.conditional`.

        Raises FairfaceError if no image has that label, or if the images are balanced by another one.
        """
        if options.conditional is None:
            raise ValueError("options.conditional is None: the networks are unconditional")
        groups = image_groups(images, options.conditional, option="--conditional")
        classes = target_shares("uniform", groups, column=options.conditional)
        weights: dict[str, float] = dict(groups.drop_nulls().value_counts().iter_rows())
        if options.balance != "natural":
            if options.balance_by != options.conditional:
                raise FairfaceError(
                    "--balance with --conditional needs the same label: give --balance-by the same column"
                )
            weights = target_shares(options.balance, groups, column=options.balance_by)
        total = sum(weights.values())
        # a class that is never sampled is left out
        shares = {group: weights[group] / total for group in classes if weights.get(group)}
        numbers = groups.replace_strict({group: i for i, group in enumerate(shares)}, default=-1, return_dtype=pl.Int64)
        return cls(shares, torch.from_numpy(numbers.fill_null(-1).to_numpy().copy()))

    def batches(self, sampler: Sampler, batch_size: int, *, first_step: int, device: torch.device) -> Iterator[Tensor]:
        """The labels of the images of `first_step` and of every later step, int64 [batch_size] on `device`."""
        numbers = self.numbers.to(device)
        batches = iterate_batches(sampler, batch_size, first_step=first_step)
        return (numbers[indices.to(device)] for indices in batches)


@dataclass
class TrainingData:
    """The training data of a run, and this rank's part of it."""

    shards: ShardSet
    packed: ShardsDocument
    rank_slice: RankSlice
    sampler: NaturalSampler | BalancedSampler
    classes: ConditionClasses | None  # of conditional networks
    batch_size: int  # images of a step on this rank

    @classmethod
    def open(cls, workspace: Workspace, options: GanOptions) -> "TrainingData":
        """Open the packed images of a workspace.

        Raises FairfaceError if nothing was packed, or if the images can't be trained on with these options.
        """
        folder = workspace.shards
        shards, packed = ShardSet.open(folder), load_shards_json(folder)
        rank_slice = RankSlice(distributed.rank(), distributed.world_size())
        images = read_images(folder.images, sha256=packed.files.get(folder.images.name, "")).filter(status="packed")
        images = with_crosses(images, workspace_attributes(workspace))
        classes = ConditionClasses.from_images(images, options) if options.conditional else None
        sampler = build_sampler(options, shards, images=images, classes=classes, rank_slice=rank_slice)
        return cls(shards, packed, rank_slice, sampler, classes, options.batch_size // rank_slice.world_size)

    @property
    def steps_per_epoch(self) -> int:
        return self.sampler.images_per_epoch // self.batch_size

    @property
    def shares(self) -> dict[str, float] | None:
        """The classes of conditional networks with their shares."""
        return self.classes.shares if self.classes else None

    @property
    def source(self) -> DataSource:
        """The images as config.json names them."""
        packed = self.packed
        return DataSource(
            manifest=packed.manifest,
            images=packed.images,
            synthetic=packed.synthetic,
            root=packed.root,
            annotated=packed.annotated,
        )


def image_groups(images: pl.DataFrame, column: str, *, option: str) -> pl.Series:
    """Return the class of each image in a column of labels, as text; null without one.

    Raises FairfaceError for a name that is no label, such as a misspelt attribute.
    """
    labels = [name for name in images.columns if name not in SCHEMA or name in OTHER_LABELS]
    if column not in labels:
        raise FairfaceError(f"{column[:80]!r} is not a label: choose {option} from {', '.join(labels)}")
    return images[column].cast(pl.String)


def build_sampler(
    options: GanOptions,
    shards: ShardSet,
    *,
    images: pl.DataFrame,
    classes: ConditionClasses | None,
    rank_slice: RankSlice,
) -> NaturalSampler | BalancedSampler:
    """The order in which this rank's part of the packed `images` is trained on.

    Raises FairfaceError if the images don't fill a batch, if the batch can't be divided by the ranks, or if the
    requested balance is impossible.
    """
    batch_size, world_size = options.batch_size, rank_slice.world_size
    if batch_size % world_size:
        raise FairfaceError(
            f"a batch of {batch_size} can't be shared by {world_size} processes: choose another --batch-size"
        )
    sampler: NaturalSampler | BalancedSampler
    if options.balance == "natural":
        kept = classes.numbers >= 0 if classes else None
        sampler = NaturalSampler(shards.sizes, options.seed, rank_slice=rank_slice, kept=kept)
    else:
        groups = image_groups(images, options.balance_by, option="--balance-by")
        shares = target_shares(options.balance, groups, column=options.balance_by)
        sampler = BalancedSampler(groups, shares, seed=options.seed, rank_slice=rank_slice)
    if sampler.images_per_epoch < batch_size // world_size:
        raise FairfaceError(
            f"{sampler.images_per_epoch * world_size} images are fewer than a batch of {batch_size}: choose a smaller "
            "--batch-size"
        )
    return sampler
