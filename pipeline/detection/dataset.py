"""The faces that detectors learn from and are judged by: real ones and fakes, from the shards or a run's samples."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

import sql
from models.detectors import FAMILIES
from pipeline.data.random_streams import TEST_SPLIT, seeded_generator
from pipeline.data.sampler import RankSlice
from pipeline.data.shard_set import ConcatShards, ShardSet
from pipeline.training import run_directory
from shards.annotations import intersection
from shards.atomic_io import fingerprint, read_json, read_parquet
from shards.errors import FairfaceError
from shards.verify import load_shards_json

TEST_SHARE = 0.2  # of the images, where no split says which ones are for testing
VALIDATION = ("val", "valid", "validation")  # faces of these splits are left alone
GROUPS = tuple(f"{gender}-{skin}" for gender in ("female", "male") for skin in ("light", "medium", "dark"))
ATTRIBUTES = ("gender", "skin_group", "age")
# what the labellers that count say of training images and of samples
LABELLED = "select source, run, key, {} from classes where source in ('train', 'generated') group by all".format(
    ", ".join(f"max(\"group\") filter (attribute = '{name}') as {name}" for name in ATTRIBUTES)
)


@dataclass
class FacePool:
    """All faces in tar order.

    `rows` has source (images, samples), run, key, fake, test, family (its place in FAMILIES; -1 unknown), group (its
    place in GROUPS; -1 unknown), and how the groups are known: `annotated` or `labelled`.
    """

    shards: ConcatShards
    rows: pl.DataFrame
    grouped_by: str
    image_size: int | None  # that all are shown at, at most: the samples' own
    manifest: str  # changes when any of that does
    run: str | None  # whose samples are the fakes

    def mask(self, fake: bool, test: bool = False) -> Tensor:
        """Which faces are that, bool [N]."""
        chosen = (self.rows["fake"] == fake).fill_null(False) & (self.rows["test"] == test)
        return torch.from_numpy(chosen.to_numpy().copy())

    def counts(self) -> dict[str, int]:
        """Faces to learn from and to be judged by."""
        sides = {
            f"{part}_{'fake' if fake else 'real'}": (fake, part == "test")
            for part in ("train", "test")
            for fake in (0, 1)
        }
        return {name: int(self.mask(bool(fake), test).sum()) for name, (fake, test) in sides.items()}

    def groups(self) -> list[int]:
        """Faces to learn from in each of GROUPS."""
        learnt = self.rows.filter(~pl.col("test"), pl.col("fake").is_not_null())
        known = dict(learnt["group"].value_counts().iter_rows())
        return [known.get(number, 0) for number in range(len(GROUPS))]

    def share(self, part: RankSlice) -> "FacePool":
        """A rank's share of the images and of the samples each: neighbours, with whole tars around them.

        Faces of those tars that are another rank's are neither real nor fakes there.
        """
        if part.world == 1:
            return self
        kept, rows, start = [], [], 0
        for side in self.shards.parts:
            mine = part.of(side.images)
            some, before = side.holding(mine)
            number = pl.int_range(pl.len()) + before
            here = self.rows.slice(start + before, some.images).with_columns(
                fake=pl.when((number >= mine.start) & (number < mine.stop)).then("fake")
            )
            kept, rows, start = [*kept, some], [*rows, here], start + side.images
        return replace(self, shards=ConcatShards(kept), rows=pl.concat(rows))

    def group_mark(self) -> str:
        """Changes when the groups of the faces to learn from do."""
        learnt = self.rows.filter(~pl.col("test"), pl.col("fake").is_not_null())["group"]
        return hashlib.sha256(learnt.to_numpy().tobytes()).hexdigest()[:16]

    @property
    def sizes(self) -> list[int]:
        """Images a tar."""
        return [shard["images"] for shard in self.shards.shards]


def build_pool(out: Path, fakes: str = "auto", run: str | None = None) -> FacePool:
    """The faces in the shards of OUT where some are real and some fake (`images`), else with a run's (`samples`).

    Against samples, the real ones are the training images that are not fakes themselves; of drawn faces, all are. The
    test faces are those of the split `test`, if the tables name one, or a fifth, the same for every detector; those of
    a split for validation are left alone. FairfaceError where one of both kinds is missing.
    """
    packed, shards = load_shards_json(out / "shards"), ShardSet.open(out / "shards")
    images = read_parquet(shards.table).filter(status="packed")
    known = dict(images["target"].value_counts().iter_rows())
    if fakes == "auto":
        fakes = "images" if known.get("real") and known.get("fake") else "samples"
    if fakes == "images":
        if run:
            raise FairfaceError("--run names the samples that serve as fakes: give --fakes samples with it")
        return pool_from_images(shards, images, packed["manifest"])
    return pool_from_samples(out, run, shards, images, packed)


def pool_from_images(shards: ShardSet, images: pl.DataFrame, manifest: str) -> FacePool:
    """Real images and fakes by their annotation; images of unknown target are left alone."""
    rows = images.select(
        "key",
        *ATTRIBUTES,
        "split",
        family=pl.col("family"),
        source=pl.lit("images"),
        run=pl.lit(None, pl.String),
        fake=pl.col("target") == "fake",
    )
    return assemble_pool(ConcatShards([shards]), rows, "annotated", None, manifest, None)


def pool_from_samples(out: Path, run: str | None, shards: ShardSet, images: pl.DataFrame, packed: dict) -> FacePool:
    """Training images as the real faces, and a run's samples as the fakes."""
    folder = run_directory.folder_of(out, run)
    samples = read_json(folder / "samples.json")
    if not samples:
        raise FairfaceError(
            f"the shards hold real faces or fakes only, and {folder} has no samples to tell them from: run `fairface "
            "sample` first, or pack both kinds"
        )
    images = images.with_columns(fake=pl.col("target") == "fake")
    real = images.filter(~pl.col("fake").fill_null(False))
    if not packed["drawn"] and not len(real):
        raise FairfaceError("every image in the shards is a fake: pack real faces, too, for a detector to learn them")
    fakes = pl.lit(False) if packed["drawn"] else pl.when(pl.col("fake").fill_null(False)).then(None).otherwise(False)
    rows = [
        images.select(
            "key", "split", family=pl.lit("Real"), source=pl.lit("images"), run=pl.lit(None, pl.String), fake=fakes
        ),
        read_parquet(folder / "samples.parquet").select(
            "key",
            split=pl.lit(None, pl.String),
            family=pl.lit("GANs"),
            source=pl.lit("samples"),
            run=pl.lit(folder.name),
            fake=pl.lit(True),
        ),
    ]
    # a label is a labeller's word on either side, so that both err alike
    said = sql.select(sql.connect(out), LABELLED).with_columns(
        source=pl.col("source").replace_strict({"train": "images", "generated": "samples"})
    )
    rows = pl.concat(rows).join(said, on=["source", "run", "key"], how="left", nulls_equal=True, maintain_order="left")
    joined = ConcatShards([shards, ShardSet.of_samples(folder / "samples", samples["shards"])])
    manifest = fingerprint([packed["manifest"], samples["fingerprint"]])
    return assemble_pool(joined, rows, "labelled", samples["image_size"], manifest, folder.name)


def assemble_pool(
    shards: ConcatShards, rows: pl.DataFrame, grouped_by: str, size: int | None, manifest: str, run: str | None
) -> FacePool:
    """The pool of these rows, with its test faces chosen. FairfaceError where a kind is missing."""
    split = pl.col("split").str.to_lowercase()
    by_split = "test" in set(rows.filter(source="images").select(split)["split"])
    chance = torch.rand(len(rows), generator=seeded_generator("cpu", 0, TEST_SPLIT)).numpy()
    held_out = pl.Series("chance", chance) < TEST_SHARE
    if by_split:
        of_split = (split == "test").fill_null(False)
        held_out = rows.select(pl.when(source="images").then(of_split).otherwise(held_out).alias("test"))["test"]
        rows = rows.with_columns(fake=pl.when(split.is_in(VALIDATION).fill_null(False)).then(None).otherwise("fake"))
    names = {name.lower(): number for number, name in enumerate(FAMILIES)}
    numbers = {name: number for number, name in enumerate(GROUPS)}
    family = pl.col("family").str.to_lowercase().replace_strict(names, default=-1, return_dtype=pl.Int64)
    rows = rows.with_columns(
        test=held_out,
        family=pl.when(pl.col("fake")).then(family.fill_null(-1).replace(0, -1)).otherwise(0),
        group=intersection().replace_strict(numbers, default=-1, return_dtype=pl.Int64).fill_null(-1),
    )
    found = FacePool(shards, rows.drop("split"), grouped_by, size, fingerprint([manifest, grouped_by]), run)
    if lacking := [name for name, count in found.counts().items() if not count]:
        raise FairfaceError(
            f"there is no face to {lacking[0].split('_')[0]} a detector with that is {lacking[0].split('_')[1]}: pack "
            "real faces and fakes, or name a run's samples with --fakes samples --run NAME"
        )
    return found
