"""The faces that detectors are trained and evaluated on: real ones and fakes, from the shards or a run's samples."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import polars as pl
import torch
from torch import Tensor

import sql
from models.detectors import FAMILIES, Labels
from pipeline.data.random_streams import TEST_SPLIT, seeded_generator
from pipeline.data.sampler import NaturalSampler, PairedSampler, RankSlice, Sampler, iterate_batches
from pipeline.data.shard_set import ConcatShards, ShardSet
from pipeline.detection.options import DetectorOptions
from pipeline.training import run_directory
from shards.atomic_io import fingerprint, read_parquet
from shards.attributes import Attribute, AttributeTable, workspace_attributes
from shards.described_files import check_unchanged, described_files, label_files, sample_files
from shards.documents import DetectorView, SamplesDocument, ShardsDocument, load_shards_json, read_document
from shards.errors import FairfaceError
from shards.images_table import read_images, with_crosses
from shards.locks import shared_lock
from shards.plan import PackConfig
from shards.workspace import FeatureFiles, RunFolder, ShardsFolder, Workspace

TEST_SHARE = 0.2  # of the faces, if the tables have no test split
VALIDATION_SPLITS = ("val", "valid", "validation")  # used neither for training nor for testing
# one attribute's selected labels of training images and of samples
SELECTED_LABELS = """select source, run, key, max("group") as "group" from selected_labels
    where source in ('train', 'generated') and attribute = $attribute group by all"""


@dataclass(frozen=True)
class FeatureSource:
    """Images whose features are stored: all packed images, all samples of a run, or a rank's share of either."""

    files: FeatureFiles
    images_hash: str  # manifest of the shards, or fingerprint of the samples
    shards: ShardSet
    first: int = 0  # index of the first image in `shards`, among all images in tar order


@dataclass(frozen=True)
class FacePool:
    """All faces in tar order.

    `rows` has one row per face: source (images, samples), run, key, fake (null: not used), test, family (its position
    in FAMILIES; -1: unknown), subset (the method of a fake; null: unknown), group (a class of `attribute`; null:
    unknown).
    """

    shards: ConcatShards
    rows: pl.DataFrame
    attribute: Attribute  # whose classes are the groups
    grouped_by: str  # where the groups come from: annotated, labelled
    image_size: int | None  # pixels of the samples, to which real faces are reduced; None without samples
    manifest: str  # hash of all of it
    run: str | None  # whose samples are the fakes
    sources: tuple[FeatureSource, ...]  # one for each part of `shards`
    held_out: tuple[str, ...] = ()  # families and methods whose fakes are held out of training

    def mask(self, *, fake: bool, test: bool = False) -> Tensor:
        """Which faces are real or fake and for training or testing, bool [N]."""
        selected = (self.rows["fake"] == fake).fill_null(False) & (self.rows["test"] == test)
        return torch.from_numpy(selected.to_numpy().copy())

    def counts(self) -> dict[str, int]:
        """The number of faces by purpose and target: train_real, train_fake, test_real, test_fake."""
        return {
            f"{purpose}_{target}": int(self.mask(fake=target == "fake", test=purpose == "test").sum())
            for purpose in ("train", "test")
            for target in ("real", "fake")
        }

    def view(self) -> DetectorView:
        """What is done to the images before they are resized to a detector's input size."""
        return detector_view(ShardsFolder(self.shards.folder), pre_resize=self.image_size)

    def training_groups(self) -> pl.Series:
        """The groups of the training faces."""
        return self.rows.filter(~pl.col("test"), pl.col("fake").is_not_null())["group"]

    def group_counts(self) -> dict[str, int]:
        """The number of training faces of each group."""
        counts = dict(self.training_groups().value_counts().iter_rows())
        return {name: counts.get(name, 0) for name in self.attribute.names}

    def groups_hash(self) -> str:
        """A hash of the groups of the training faces."""
        groups = self.training_groups().fill_null("").to_frame().write_csv(include_header=False)
        classes = [self.attribute.name, *self.attribute.names]  # whose order numbers the groups
        return hashlib.sha256("\n".join([*classes, groups]).encode()).hexdigest()[:16]

    def rank_share(self, rank_slice: RankSlice) -> "FacePool":
        """A rank's share of the images and of the samples: consecutive ones, with all tars that contain them.

        Faces in those tars that belong to another rank have no target.
        """
        if rank_slice.world_size == 1:
            return self
        sources, rows, start = [], [], 0
        for source in self.sources:
            part = source.shards
            mine = rank_slice.indices(part.images)
            covering, first = part.covering(mine)
            index = pl.int_range(pl.len()) + first
            is_mine = (index >= mine.start) & (index < mine.stop)
            part_rows = self.rows.slice(start + first, covering.images)
            rows.append(part_rows.with_columns(fake=pl.when(is_mine).then("fake")))
            sources.append(replace(source, shards=covering, first=first))
            start += part.images
        shards = ConcatShards([source.shards for source in sources])
        return replace(self, shards=shards, rows=pl.concat(rows), sources=tuple(sources))


def build_pool(
    workspace: Workspace,
    fakes: str = "auto",
    *,
    run: str | None = None,
    group_by: str | None = None,
    locks: ExitStack | None = None,
    trains: bool = True,
) -> FacePool:
    """Build the pool from the shards if they contain real faces and fakes (`images`), otherwise with a run's `samples`.

    With samples, the real faces are the training images that are not fakes themselves, or all images if they are
    synthetic. The test faces are those of the split `test` if the tables name one, otherwise a fifth of the faces, the
    same for every detector; faces of a validation split are not used. The groups are the classes of the attribute
    `group_by`, by default those that `default_group_by` names. The images and samples are locked until `locks`
    closes. Raises FairfaceError if there are no real faces or no fakes to test with or, if the detector `trains`, to
    train with; for an unknown attribute, and for damaged tables.
    """
    locks, attributes = locks or ExitStack(), workspace_attributes(workspace)
    group_by = group_by or default_group_by(attributes)
    if group_by not in attributes:
        raise FairfaceError(f"--group-by {group_by[:80]!r} is not one of {', '.join(attributes)}")
    attribute = attributes[group_by]
    locks.enter_context(shared_lock(workspace.shards.lock, "training a detector on it"))
    packed, shards = load_shards_json(workspace.shards), ShardSet.open(workspace.shards)
    check_unchanged(described_files(workspace.shards.document, ShardsDocument, only=workspace.shards.images))
    images = with_crosses(read_images(workspace.shards.images, sha256=None).filter(status="packed"), attributes)
    targets = set(images["target"].drop_nulls().unique())
    if fakes == "auto":
        fakes = "images" if targets >= {"real", "fake"} else "samples"
    if fakes == "images":
        if run:
            raise FairfaceError("--run names the run whose samples serve as fakes: use it with --fakes samples")
        source = FeatureSource(workspace.shards.features, packed.manifest, shards)
        return check_faces(pool_from_images(source, images, attribute=attribute), trains=trains)
    folder = run_directory.find_run(workspace, run)
    locks.enter_context(shared_lock(folder.samples_lock, "training a detector on its samples"))
    pool = pool_from_samples(workspace, folder, attribute=attribute, shards=shards, images=images, packed=packed)
    return check_faces(pool, trains=trains)


def default_group_by(attributes: AttributeTable) -> str:
    """The attribute whose classes are a detector's groups: the first cross, or else the first attribute."""
    return attributes.crosses[0].name if attributes.crosses else next(iter(attributes))


def pool_from_images(source: FeatureSource, images: pl.DataFrame, *, attribute: Attribute) -> FacePool:
    """Build the pool from real images and fakes by annotation; images of unknown target are not used."""
    rows = images.select(
        "key",
        "split",
        "family",
        "subset",
        pl.col(attribute.name).cast(pl.String).alias("group"),
        source=pl.lit("images"),
        run=pl.lit(None, pl.String),
        fake=pl.col("target") == "fake",
    )
    shards = ConcatShards([source.shards])
    return assign_faces(FacePool(shards, rows, attribute, "annotated", None, source.images_hash, None, (source,)))


def pool_from_samples(
    workspace: Workspace,
    folder: RunFolder,
    *,
    attribute: Attribute,
    shards: ShardSet,
    images: pl.DataFrame,
    packed: ShardsDocument,
) -> FacePool:
    """Build the pool from training images as the real faces, and a run's samples as the fakes.

    Both are grouped by the labels of the same labeller, so that its errors are the same on both sides.
    """
    samples = read_document(folder.samples_document, SamplesDocument)
    if not samples:
        raise FairfaceError(
            f"the shards hold only real faces or only fakes, and {folder.folder} has no samples to compare them with: "
            "run `fairface sample` first, or pack both kinds"
        )
    is_fake = (pl.col("target") == "fake").fill_null(False)
    is_all_fake = images.select(is_fake.all()).item()
    if is_all_fake and not packed.synthetic:
        raise FairfaceError("every image in the shards is a fake: pack real faces as well to train a detector")
    fake = pl.lit(False) if is_all_fake else pl.when(is_fake).then(None).otherwise(False)
    check_unchanged(sample_files(folder))
    real_rows = images.select(
        "key", "split", "subset", family=pl.lit("Real"), source=pl.lit("images"), run=pl.lit(None, pl.String), fake=fake
    )
    rows, labels = pl.concat([real_rows, sample_rows(folder)]), selected_labels(workspace, folder, attribute=attribute)
    rows = rows.join(labels, on=["source", "run", "key"], how="left", nulls_equal=True, maintain_order="left")
    tars = ShardSet.from_samples(folder.samples, samples.shards)
    sources = (
        FeatureSource(workspace.shards.features, packed.manifest, shards),
        FeatureSource(folder.features, samples.fingerprint, tars),
    )
    manifest = fingerprint([source.images_hash for source in sources])
    both = ConcatShards([shards, tars])
    return assign_faces(FacePool(both, rows, attribute, "labelled", samples.image_size, manifest, folder.name, sources))


def selected_labels(workspace: Workspace, run: RunFolder, *, attribute: Attribute) -> pl.DataFrame:
    """The groups of the training images and of a run's samples: the selected labels of an attribute.

    Raises FairfaceError for damaged labels.
    """
    sides = (workspace.shards.label_files, run.label_files)
    with ExitStack() as locks:
        for files in sides:
            locks.enter_context(shared_lock(files.lock, "reading its labels"))
        check_unchanged(file for files in sides for file in label_files(files, embeddings=False))
        return sql.select(sql.connect(workspace), SELECTED_LABELS, {"attribute": attribute.name}).with_columns(
            source=pl.col("source").replace_strict({"train": "images", "generated": "samples"})
        )


def sample_rows(run: RunFolder) -> pl.DataFrame:
    """A run's samples as fakes."""
    return read_parquet(run.samples_table).select(
        "key",
        split=pl.lit(None, pl.String),
        subset=pl.lit(run.name),
        family=pl.lit("GANs"),
        source=pl.lit("samples"),
        run=pl.lit(run.name),
        fake=pl.lit(True),
    )


def assign_faces(pool: FacePool) -> FacePool:
    """Build the pool: select its test faces, and convert families to numbers."""
    rows = assign_test_faces(pool.rows)
    families = {name.lower(): number for number, name in enumerate(FAMILIES)}
    family = pl.col("family").str.to_lowercase().replace_strict(families, default=-1, return_dtype=pl.Int64)
    rows = rows.with_columns(family=pl.when(pl.col("fake")).then(family.fill_null(-1).replace(0, -1)).otherwise(0))
    return replace(pool, rows=rows.drop("split"), manifest=fingerprint([pool.manifest, pool.grouped_by]))


def check_faces(pool: FacePool, *, trains: bool) -> FacePool:
    """Return the pool if it has real faces and fakes to test with and, if the detector `trains`, to train with.

    Raises FairfaceError otherwise.
    """
    for name, count in pool.counts().items():
        purpose, target = name.split("_")
        if not count and (trains or purpose == "test"):
            raise FairfaceError(
                f"there are no {target} faces to {purpose} a detector with: pack real faces and fakes, or name a run's "
                "samples with --fakes samples --run NAME"
            )
    return pool


def assign_test_faces(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with `test`; `fake` becomes null for faces of a validation split.

    Images are split by the tables if they name a split `test`; all other faces are split at random.
    """
    split = pl.col("split").str.to_lowercase()
    uniform = torch.rand(len(rows), generator=seeded_generator("cpu", 0, TEST_SPLIT)).numpy()
    test = pl.Series(uniform) < TEST_SHARE
    if "test" in set(rows.filter(source="images").select(split)["split"]):
        by_split = pl.when(source="images").then((split == "test").fill_null(False)).otherwise(test)
        test = rows.select(test=by_split)["test"]
        is_validation = split.is_in(VALIDATION_SPLITS).fill_null(False)
        rows = rows.with_columns(fake=pl.when(is_validation).then(None).otherwise("fake"))
    return rows.with_columns(test=test)


def detector_view(shards: ShardsFolder, *, pre_resize: int | None) -> DetectorView:
    """The view of detectors that are trained on the packed images."""
    options = load_shards_json(shards).options
    return DetectorView(
        pre_resize=pre_resize,
        packed_size=options.get("size"),
        packed_quality=options.get("quality", PackConfig.quality),
    )


def build_sampler(
    options: DetectorOptions, faces: FacePool, *, world_size: int, trains: bool = True
) -> NaturalSampler | PairedSampler:
    """Build the sampler of a rank's share of the training faces.

    Raises FairfaceError if the detector `trains` and the faces do not fill a batch.
    """
    images, paired = options.images_per_step, options.spec.paired_batches
    if images % (world_size * (2 if paired else 1)):
        raise FairfaceError(
            f"a batch of {images} can't be shared by {world_size} processes: choose another --train-batchsize"
        )
    rank_images = images // world_size
    real, fake = faces.mask(fake=False), faces.mask(fake=True)
    sampler: NaturalSampler | PairedSampler
    if paired:
        sampler = PairedSampler(faces.shards.sizes, options.seed, batch_size=rank_images, real=real, fake=fake)
    else:
        sampler = NaturalSampler(faces.shards.sizes, options.seed, kept=real | fake)
    if trains and sampler.images_per_epoch < rank_images:
        raise FairfaceError(
            f"there are fewer training faces than a batch of {images} needs: choose a smaller --train-batchsize"
        )
    return sampler


def iterate_labels(
    faces: FacePool, sampler: Sampler, *, batch_size: int, first_step: int, device: torch.device
) -> Iterator[Labels]:
    """Yield the labels of the faces of `first_step` and of every later step, int64 [batch_size] each, on `device`."""
    numbers = {name: number for number, name in enumerate(faces.attribute.names)}
    group = faces.rows["group"].replace_strict(numbers, default=-1, return_dtype=pl.Int64)
    columns = [
        torch.from_numpy(column.cast(pl.Int64).fill_null(-1).to_numpy().copy()).to(device)
        for column in (faces.rows["fake"], faces.rows["family"], group)
    ]
    for indices in iterate_batches(sampler, batch_size, first_step=first_step):
        batch = indices.to(device)
        yield Labels(*(column[batch] for column in columns))
