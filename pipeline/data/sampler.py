"""Samplers of each step's images: pure functions of seed, epoch, rank and world size, with no state to save."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import polars as pl
import torch
from torch import Tensor

from pipeline.data.random_streams import BALANCED_DRAWS, ORDER, seeded_generator
from shards.errors import FairfaceError

# Images that are shuffled together. With more, the tars read at the same time would not fit into the disk cache.
SHUFFLE_WINDOW = 1 << 15


@dataclass(frozen=True)
class RankSlice:
    """The share of one of several processes: consecutive images, a random sample because packing shuffles them."""

    rank: int = 0
    world_size: int = 1

    def indices(self, images: int) -> range:
        """Return the indices, out of `images`, of this rank."""
        return range(images * self.rank // self.world_size, images * (self.rank + 1) // self.world_size)

    def all_ranks(self) -> "list[RankSlice]":
        """Return the slices of every rank, this one included."""
        return [RankSlice(rank, self.world_size) for rank in range(self.world_size)]


SINGLE_RANK = RankSlice()


class Sampler(Protocol):
    """The order in which a rank's images are read."""

    images_per_epoch: int  # the same on every rank

    def indices(self, epoch: int) -> Tensor:
        """Return the images of an epoch, int64 [images_per_epoch], as indices in tar order."""
        ...


class NaturalSampler:
    """Every image once per epoch, in a new order each time.

    Up to SHUFFLE_WINDOW images are permuted together. With more, the tars are permuted, and then the images of as many
    successive tars as fill a window. That is random enough after the global shuffle at packing, and a disk reads it in
    long runs.
    """

    def __init__(
        self, sizes: Sequence[int], seed: int, *, rank_slice: RankSlice = SINGLE_RANK, kept: Tensor | None = None
    ) -> None:
        """`sizes` are the images of each tar; `kept`, bool [images], excludes images where it is false."""
        self.seed, images = seed, sum(sizes)
        kept = torch.ones(images, dtype=torch.bool) if kept is None else kept
        self.excluded = images - int(kept.sum())  # images of all ranks
        slices = [rank.indices(images) for rank in rank_slice.all_ranks()]
        self.images_per_epoch = min(int(kept[own.start : own.stop].sum()) for own in slices)
        self.pieces: list[Tensor] = []  # this rank's images of each tar
        start, own = 0, slices[rank_slice.rank]
        for size in sizes:
            piece = torch.tensor(range(max(start, own.start), min(start + size, own.stop)), dtype=torch.int64)
            if len(piece := piece[kept[piece]]):
                self.pieces.append(piece)
            start += size

    def indices(self, epoch: int) -> Tensor:
        """Return the images of an epoch, int64 [images_per_epoch], as indices in tar order."""
        stream = (self.seed, ORDER, epoch)
        if len(everything := torch.cat(self.pieces)) <= SHUFFLE_WINDOW:
            return _permute(everything, *stream)[: self.images_per_epoch]
        windows: list[list[Tensor]] = [[]]
        window_images = 0
        for number in _permute(torch.arange(len(self.pieces)), *stream).tolist():
            if window_images >= SHUFFLE_WINDOW:
                windows.append([])
                window_images = 0
            windows[-1].append(self.pieces[number])
            window_images += len(self.pieces[number])
        shuffled = [_permute(torch.cat(window), *stream, i + 1) for i, window in enumerate(windows)]
        return torch.cat(shuffled)[: self.images_per_epoch]


class BalancedSampler:
    """The groups of a label column in target shares, as exactly as whole images allow.

    Within a group every image is read before any is read again, also across epochs. Images without the label are
    excluded.
    """

    def __init__(
        self, groups: pl.Series, shares: Mapping[str, float], *, seed: int, rank_slice: RankSlice = SINGLE_RANK
    ) -> None:
        """`groups` is the group of each image in tar order, null where it has none.

        Raises FairfaceError if a rank's slice has no image of a group with a share.
        """
        self.seed, self.excluded = seed, groups.null_count()  # images of all ranks
        self.images_per_epoch = (len(groups) - self.excluded) // rank_slice.world_size
        self.counts = apportion(shares, self.images_per_epoch)
        self.members: dict[str, Tensor] = {}  # this rank's images of each group
        slices = [rank.indices(len(groups)) for rank in rank_slice.all_ranks()]
        for group, count in self.counts.items():
            members = torch.from_numpy((groups == group).fill_null(False).arg_true().to_numpy().astype("int64"))
            by_rank = [members[(members >= own.start) & (members < own.stop)] for own in slices]
            if count and not all(map(len, by_rank)):
                raise FairfaceError(
                    f"--balance needs {shares[group]:.1%} of {group}, which has {len(members):,} images: too few for "
                    f"{rank_slice.world_size} processes to each have some"
                )
            self.members[group] = by_rank[rank_slice.rank]

    def indices(self, epoch: int) -> Tensor:
        """Return the images of an epoch, int64 [images_per_epoch], as indices in tar order."""
        chosen: list[Tensor] = []
        for i, (group, count) in enumerate(self.counts.items()):
            members, position, end = self.members[group], epoch * count, (epoch + 1) * count
            while position < end:  # consecutive permutations of the group, continued where the last epoch ended
                cycle, first = divmod(position, len(members))
                permutation = _permute(members, self.seed, BALANCED_DRAWS, i, cycle)
                chosen.append(permutation[first : first + end - position])
                position += len(chosen[-1])
        return _permute(torch.cat(chosen), self.seed, ORDER, epoch)


class PairedSampler:
    """Equally many real images and fakes in every batch, the real ones first; an epoch has every fake once.

    Every real image is read before any is read again, also across epochs.
    """

    def __init__(self, sizes: Sequence[int], seed: int, *, batch_size: int, real: Tensor, fake: Tensor) -> None:
        """`sizes` are the images of each tar, `real` and `fake` are bool [images], `batch_size` is even."""
        self.real, self.fake = NaturalSampler(sizes, seed, kept=real), NaturalSampler(sizes, seed, kept=fake)
        self.half = batch_size // 2
        batches = self.fake.images_per_epoch // self.half
        self.images_per_epoch = 2 * batches * self.half if self.real.images_per_epoch else 0

    def indices(self, epoch: int) -> Tensor:
        """Return the images of an epoch, int64 [images_per_epoch], as indices in tar order."""
        count = self.images_per_epoch // 2
        fakes, position, end = self.fake.indices(epoch)[:count], epoch * count, (epoch + 1) * count
        reals: list[Tensor] = []
        while position < end:
            cycle, first = divmod(position, self.real.images_per_epoch)
            reals.append(self.real.indices(cycle)[first : first + end - position])
            position += len(reals[-1])
        return torch.stack([torch.cat(reals).view(-1, self.half), fakes.view(-1, self.half)], 1).flatten()


def iterate_batches(sampler: Sampler, batch_size: int, *, first_step: int) -> Iterator[Tensor]:
    """Yield the images of `first_step` and of every later step, int64 [batch_size]; incomplete batches are dropped."""
    steps_per_epoch = sampler.images_per_epoch // batch_size
    step = first_step
    while True:
        epoch, first = divmod(step, steps_per_epoch)
        indices = sampler.indices(epoch)
        for i in range(first, steps_per_epoch):
            yield indices[i * batch_size : (i + 1) * batch_size]
        step = (epoch + 1) * steps_per_epoch


def target_shares(balance: str | Mapping[str, float], groups: pl.Series, *, column: str) -> dict[str, float]:
    """Return each group's target share, summing to 1: equal for "uniform", otherwise `balance` itself, normalised.

    Raises FairfaceError if no image has the label, and for a group without images.
    """
    present = sorted(groups.drop_nulls().unique())
    if not present:
        raise FairfaceError(f"no image has the label {column}, which --balance or --conditional needs")
    shares = dict(balance) if isinstance(balance, Mapping) else dict.fromkeys(present, 1.0)
    if unknown := [group for group, share in shares.items() if share and group not in present]:
        raise FairfaceError(
            f"--balance by {column}: no image belongs to {', '.join(unknown)}; choose from {', '.join(present)}"
        )
    total = sum(shares.values())
    return {group: share / total for group, share in shares.items()}


def read_shares(path: Path) -> dict[str, float]:
    """Read target shares from a CSV with the columns `group` and `share`. Raises FairfaceError for anything else."""
    if not path.is_file():
        raise FairfaceError(f"{path} is neither natural, uniform nor a file")
    try:
        table = pl.read_csv(path, schema_overrides={"group": pl.String, "share": pl.Float64}, glob=False)
        pairs = table.select(pl.col("group").str.strip_chars(), "share").rows()
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise FairfaceError(f"{path} is not a CSV with the columns group and share: {reason}") from error
    shares = dict(pairs)
    valid = all(share is not None and 0 <= share < math.inf for share in shares.values())
    if len(shares) < len(pairs) or None in shares or not valid:
        raise FairfaceError(f"{path}: every group needs one share, a number of at least 0")
    if not 0 < sum(shares.values()) < math.inf:
        raise FairfaceError(f"{path}: at least one group needs a share above 0, and their sum must be finite")
    return shares


def apportion(shares: Mapping[str, float], count: int) -> dict[str, int]:
    """Divide `count` into integers in proportion to `shares`, largest remainders first (Hare quota)."""
    total = sum(shares.values())
    exact = {group: count * share / total for group, share in shares.items()}
    seats = {group: int(number) for group, number in exact.items()}
    for group in sorted(exact, key=lambda g: seats[g] - exact[g])[: count - sum(seats.values())]:
        seats[group] += 1
    return seats


def _permute(values: Tensor, *stream: int) -> Tensor:
    return values[torch.randperm(len(values), generator=seeded_generator("cpu", *stream))]
