"""Which images every step trains on: a pure function of seed, epoch, rank and world size, with nothing to save."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from pipeline.data.random_streams import BALANCED_DRAWS, ORDER, seeded_generator
from shards.annotations import intersection
from shards.errors import FairfaceError

SHUFFLE_WINDOW = (
    1 << 15
)  # images that are shuffled together; more would read more tars at once than a disk's cache holds


def permuted(numbers: Tensor, *place: int) -> Tensor:
    return numbers[torch.randperm(len(numbers), generator=seeded_generator("cpu", *place))]


@dataclass(frozen=True)
class RankSlice:
    """What one of several processes trains on: neighbouring images, which packing has made a random sample."""

    rank: int = 0
    world: int = 1

    def of(self, images: int) -> range:
        return range(images * self.rank // self.world, images * (self.rank + 1) // self.world)


SINGLE_RANK = RankSlice()


class NaturalSampler:
    """The images as they are: every epoch holds each of them once, in a new order.

    Up to WINDOW images are permuted as a whole. Of more, the tars are permuted, and the images of as many successive
    tars as fill a window: random enough after the global shuffle of packing, and read by a disk in long pieces.
    """

    def __init__(self, sizes: Sequence[int], seed: int, part: RankSlice = SINGLE_RANK, kept: Tensor | None = None):
        """`sizes` are the tars' in images; bool [images] `kept` leaves some out."""
        self.seed, images = seed, sum(sizes)
        kept = torch.ones(images, dtype=torch.bool) if kept is None else kept
        self.left_out = images - int(kept.sum())  # images of all ranks
        parts = [RankSlice(rank, part.world).of(images) for rank in range(part.world)]
        self.length = min(int(kept[other.start : other.stop].sum()) for other in parts)  # the same on every rank
        self.pieces, start, mine = [], 0, part.of(images)
        for size in sizes:
            piece = torch.tensor(range(max(start, mine.start), min(start + size, mine.stop)), dtype=torch.int64)
            if len(piece := piece[kept[piece]]):
                self.pieces.append(piece)
            start += size

    def epoch(self, epoch: int) -> Tensor:
        """The numbers (in tar order) of an epoch's images, int64 [length]."""
        place = (self.seed, ORDER, epoch)
        if len(every := torch.cat(self.pieces)) <= SHUFFLE_WINDOW:
            return permuted(every, *place)[: self.length]
        order = [self.pieces[i] for i in permuted(torch.arange(len(self.pieces)), *place)]
        windows, held = [[]], 0
        for piece in order:
            if held >= SHUFFLE_WINDOW:
                windows.append([])
                held = 0
            windows[-1].append(piece)
            held += len(piece)
        return torch.cat([permuted(torch.cat(w), *place, i + 1) for i, w in enumerate(windows)])[: self.length]


class BalancedSampler:
    """Every epoch draws the groups of a label column in given shares, as exactly as whole images allow.

    Within a group all images come before one comes again, from epoch to epoch too. Images without the label are left
    out.
    """

    def __init__(self, groups: pl.Series, shares: Mapping[str, float], seed: int, part: RankSlice = SINGLE_RANK):
        """`groups` is each image's group, in tar order; FairfaceError where a rank's part lacks one that is wanted."""
        self.seed, self.left_out = seed, groups.null_count()  # images of all ranks
        self.length = (len(groups) - self.left_out) // part.world
        self.members, self.counts = {}, apportion(shares, self.length)
        for group, count in self.counts.items():
            numbers = torch.from_numpy((groups == group).fill_null(False).arg_true().to_numpy().astype("int64"))
            parts = [RankSlice(rank, part.world).of(len(groups)) for rank in range(part.world)]
            mine = [numbers[(numbers >= other.start) & (numbers < other.stop)] for other in parts]
            if count and not all(map(len, mine)):
                raise FairfaceError(
                    f"--balance wants {shares[group]:.1%} of {group}, of which there are {len(numbers):,} images: too "
                    f"few for {part.world} processes to have some each"
                )
            self.members[group] = mine[part.rank]

    def epoch(self, epoch: int) -> Tensor:
        """The numbers (in tar order) of an epoch's images, int64 [length]."""
        drawn = []
        for i, (group, count) in enumerate(self.counts.items()):
            members, at, end = self.members[group], epoch * count, (epoch + 1) * count
            while at < end:  # one permutation of the group after the other, on from where the last epoch ended
                again, first = divmod(at, len(members))
                drawn.append(permuted(members, self.seed, BALANCED_DRAWS, i, again)[first : first + end - at])
                at += len(drawn[-1])
        return permuted(torch.cat(drawn), self.seed, ORDER, epoch)


class PairedSampler:
    """As many real images as fakes in every batch, the real ones first: an epoch holds every fake once.

    All real images come before one comes again, from epoch to epoch too.
    """

    def __init__(self, sizes: Sequence[int], seed: int, batch: int, real: Tensor, fake: Tensor):
        """`real` and `fake` are bool [images]; `batch` is an even number of images."""
        self.real, self.fake = NaturalSampler(sizes, seed, kept=real), NaturalSampler(sizes, seed, kept=fake)
        self.half = batch // 2
        self.length = 2 * (self.fake.length // self.half) * self.half if self.real.length else 0

    def epoch(self, epoch: int) -> Tensor:
        """The numbers (in tar order) of an epoch's images, int64 [length]."""
        count = self.length // 2
        fakes, at, drawn = self.fake.epoch(epoch)[:count], epoch * count, []
        while at < (epoch + 1) * count:
            again, first = divmod(at, self.real.length)
            drawn.append(self.real.epoch(again)[first : first + (epoch + 1) * count - at])
            at += len(drawn[-1])
        return torch.stack([torch.cat(drawn).view(-1, self.half), fakes.view(-1, self.half)], 1).flatten()


def apportion(shares: Mapping[str, float], count: int) -> dict[str, int]:
    """`count` in whole numbers by shares, largest remainders first (Hare's quota)."""
    total = sum(shares.values())
    exact = {group: count * share / total for group, share in shares.items()}
    whole = {group: int(number) for group, number in exact.items()}
    for group in sorted(exact, key=lambda g: whole[g] - exact[g])[: count - sum(whole.values())]:
        whole[group] += 1
    return whole


def image_groups(images: pl.DataFrame, column: str) -> pl.Series:
    """Each packed image's group in a label column, or `intersection`, as text; null where it has none."""
    if column == "intersection":
        return images.select(intersection().alias(column))[column]
    return images[column].cast(pl.String)


def target_shares(balance: str | Mapping[str, float], groups: pl.Series, column: str) -> dict[str, float]:
    """The target shares: equal ones of all groups that there are for `uniform`, or those given, summing up to 1.

    FairfaceError where no image has the label, and for a group that no image is of.
    """
    present = sorted(groups.drop_nulls().unique())
    if not present:
        raise FairfaceError(f"--balance by {column}: no image has that label")
    given = dict.fromkeys(present, 1.0) if balance == "uniform" else dict(balance)
    if unknown := [group for group, share in given.items() if share and group not in present]:
        raise FairfaceError(
            f"--balance by {column}: no image is of {', '.join(unknown)}; there is {', '.join(present)}"
        )
    return {group: share / sum(given.values()) for group, share in given.items()}


def read_shares(path: Path) -> dict[str, float]:
    """Target shares out of a CSV with the columns `group` and `share`. FairfaceError for anything else."""
    if not path.is_file():
        raise FairfaceError(f"{path} is neither natural, uniform nor a file")
    try:
        table = pl.read_csv(path, schema_overrides={"group": pl.String, "share": pl.Float64}, glob=False)
        pairs = table.select(pl.col("group").str.strip_chars(), "share").rows()
    except pl.exceptions.PolarsError as error:
        raise FairfaceError(
            f"{path} is no CSV with the columns group and share: {str(error).splitlines()[0]}"
        ) from error
    shares = dict(pairs)
    good = all(share is not None and 0 <= share < math.inf for share in shares.values())
    if len(shares) < len(pairs) or None in shares or not good:
        raise FairfaceError(f"{path}: every group needs one share, a number from 0 up")
    if not 0 < sum(shares.values()) < math.inf:
        raise FairfaceError(f"{path}: at least one group needs a share above 0, and their sum must be a number")
    return shares


def iterate_batches(order: NaturalSampler | BalancedSampler, batch: int, step: int) -> Iterator[Tensor]:
    """The numbers of the images of `step` and of every later step, int64 [batch]; incomplete batches are left out."""
    per_epoch = order.length // batch
    while True:
        epoch, first = divmod(step, per_epoch)
        numbers = order.epoch(epoch)
        for i in range(first, per_epoch):
            yield numbers[i * batch : (i + 1) * batch]
        step = (epoch + 1) * per_epoch
