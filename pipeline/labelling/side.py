"""Labels the images of one side of the comparison: the training images or a run's samples."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import polars as pl
import torch
from torch import Tensor
from tqdm import tqdm

from models import clip, skin
from models.classifier import NAME as CLASSIFIER
from models.classifier import ClassifierLabeller
from pipeline.data.decoder import decode_all
from pipeline.data.shard_set import ShardSet
from pipeline.labelling import tables
from pipeline.runtime import command_line
from pipeline.threads import choose_threads, restored_threads
from shards import distributed
from shards.atomic_io import (
    atomic_write,
    check_regular,
    check_removable,
    file_sha256,
    fingerprint,
    read_parquet,
    remove_tree,
    write_parquet,
)
from shards.documents import LabelsDocument, changed_files, read_document
from shards.errors import FairfaceError
from shards.locks import check_links
from shards.workspace import LabelFiles

IMAGE_SCHEMA = {"pixel_tone": pl.Int8, "typology_angle": pl.Float32}  # of the skin pixels


Labeller = clip.Labeller | ClassifierLabeller


@dataclass(frozen=True)
class LabelKinds:
    """The labels of every image, by the labeller and from its pixels."""

    labeller: Labeller
    has_skin_tones: bool  # whether the Monk tones are an attribute; if not, skin pixels give angles alone
    classifier: ClassifierLabeller | None = None  # in addition to another labeller

    @property
    def labellers(self) -> list[Labeller]:
        """The labeller, followed by the classifier if there is one."""
        return [self.labeller, *([self.classifier] if self.classifier else [])]

    def label(self, images: Tensor) -> tuple[list[tuple[dict[str, Tensor], Tensor]], tuple[Tensor, Tensor]]:
        """Label images, uint8 [B, S, S, 3]; returns the results of every labeller, and that of `skin.read_skin`."""
        return [labeller.label(images.permute(0, 3, 1, 2)) for labeller in self.labellers], skin.read_skin(images)

    @property
    def fingerprint(self) -> str:
        """A hash of what the labels are, in addition to the images."""
        classes = [[name, *attribute.names] for name, attribute in self.labeller.attributes.items()]
        names = [labeller.name for labeller in self.labellers]
        return fingerprint([*names, skin.VERSION, self.has_skin_tones, classes])


@dataclass
class SideResult:
    """The labels of one side."""

    document: LabelsDocument
    unchanged: bool


@dataclass
class Side:
    """Images to label, and the identity of their labels."""

    files: LabelFiles
    shards: ShardSet
    keys: pl.Series  # of the first images in tar order
    document: LabelsDocument  # that is written with the labels
    labels: LabelKinds
    fit_keys: pl.Series | None = None  # of the images that the classifier was fitted to; it does not label them

    def label(self, device: torch.device, *, batch_size: int, force: bool, progress: bool) -> SideResult:
        """Write the tables of labels and embeddings and labels.json, unless they are up to date.

        The labels of every shard are saved as soon as they are complete; a later call labels only the missing ones.
        """
        old = distributed.run_on_rank0(lambda: None if force else self.find_labels())
        if old:
            distributed.run_on_rank0(lambda: remove_tree(self.files.parts))
            return SideResult(old, unchanged=True)
        parts = self.files.parts / self.document.fingerprint
        distributed.run_on_rank0(lambda: self.prepare_parts(parts, force=force))
        with restored_threads():
            if device.type == "cpu":
                self.set_threads(batch_size)
            distributed.run_on_all_ranks(
                lambda: self.label_parts(parts, device=device, batch_size=batch_size, progress=progress)
            )
        distributed.run_on_rank0(lambda: self.merge_parts(parts))
        return SideResult(self.document, unchanged=False)

    def set_threads(self, batch_size: int) -> None:
        """Set torch to the number of threads with which labelling is fastest, and record that number."""
        assert self.document.size is not None
        shape = (batch_size, self.document.size, self.document.size, 3)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator())

        def time_batch(count: int) -> float:
            torch.set_num_threads(count)
            start = time.perf_counter()
            self.labels.label(images)
            return time.perf_counter() - start

        steps = len(self.keys) // batch_size // distributed.world_size()
        threads = choose_threads(time_batch, steps=steps, step_images=batch_size, on_all_ranks=True)
        torch.set_num_threads(threads.count)
        self.document.threads = threads.count

    def find_labels(self) -> LabelsDocument | None:
        """The document of intact labels of these images by this labeller; None if there are none."""
        old = read_document(self.files.document, LabelsDocument)
        if old is None or old.fingerprint != self.document.fingerprint:
            return None
        return None if changed_files(self.files.folder, old.files) else old

    def prepare_parts(self, parts: Path, *, force: bool) -> None:
        """Create the folder of the labels of single shards, empty with `force`.

        Raises FairfaceError for a folder where a file should be, and for a link where a folder should be.
        """
        check_removable(self.files.all())
        if self.files.parts.exists():
            check_links(self.files.parts)
            if force:
                remove_tree(parts)
        parts.mkdir(parents=True, exist_ok=True)

    def shard_keys(self) -> Iterator[tuple[int, int, pl.Series]]:
        """The number of each shard with images to label, the index of its first image, and their keys."""
        first = 0
        for number, images in enumerate(self.shards.sizes):
            if len(keys := self.keys[first : first + images]):
                yield number, first, keys
            first += images

    def label_parts(self, parts: Path, *, device: torch.device, batch_size: int, progress: bool) -> None:
        """Write one Parquet file per shard into `parts`; every rank labels its share of the missing ones."""
        assert self.document.size is not None
        labeller = self.labels.labeller
        with tqdm(
            total=len(self.keys), unit="img", desc=f"labelling with {labeller.name}", disable=not progress
        ) as bar:
            for number, first, keys in self.shard_keys():
                is_mine = number % distributed.world_size() == distributed.rank()
                if is_mine and not find_part(parts, number):
                    shard, _ = self.shards.covering(range(first, first + len(keys)))
                    labels = label_images(
                        shard,
                        keys,
                        labels=self.labels,
                        size=self.document.size,
                        device=device,
                        batch_size=batch_size,
                    )
                    write_part(parts, number, labels)
                bar.update(len(keys))

    def merge_parts(self, parts: Path) -> None:
        """Merge the labels of all shards.

        labels.json is removed first and written last, so that it exists only if everything is complete.
        """
        found = [find_part(parts, number) for number, _, _ in self.shard_keys()]
        labeller, classifier = self.labels.labeller, self.labels.classifier
        label_schema = tables.label_schema(labeller.attributes)
        schema = label_schema | IMAGE_SCHEMA | {"embedding": pl.Array(pl.Float16, labeller.dim)}
        if classifier:
            schema[CLASSIFIER] = pl.Struct(tables.label_schema(classifier.attributes))
        table = pl.concat([read_parquet(path, schema) for path in found if path] or [pl.DataFrame(schema=schema)])
        if not table["key"].equals(self.keys, check_dtypes=False, null_equal=True):
            raise FairfaceError(
                f"some labels of {self.files.folder} are missing, perhaps because another process labelled it at the "
                "same time: rerun the command"
            )
        tones = [pl.col("pixel_tone").alias(skin.ATTRIBUTE)] if self.labels.has_skin_tones else []
        pixels = table.select("key", *tones, "typology_angle")
        written = {
            self.files.embeddings: table.select("key", "embedding"),
            self.files.pixels: self.method_table(pixels, "pixels", labeller=f"pixels-{skin.VERSION}"),
            self.files.labels: self.method_table(
                table.select(list(label_schema)), labeller.method, labeller=labeller.name
            ),
        }
        if classifier:
            labels = table[CLASSIFIER].struct.unnest()
            written[self.files.classifier_labels] = self.method_table(labels, CLASSIFIER, labeller=classifier.name)
        tables.replace_tables(self.files.document, written, self.document, obsolete=self.files.label_tables())
        remove_tree(self.files.parts)

    def method_table(self, labels: pl.DataFrame, method: str, *, labeller: str) -> pl.DataFrame:
        """The rows of one method's table of labels."""
        if method == CLASSIFIER and self.fit_keys is not None:
            labels = labels.filter(~pl.col("key").is_in(self.fit_keys.implode()))
        return tables.label_table(labels, document=self.document, method=method, labeller=labeller)


def write_part(parts: Path, number: int, labels: pl.DataFrame) -> None:
    """Write the labels of a shard; the name of the file contains its hash, so that damage is noticed."""
    content = BytesIO()
    write_parquet(parts, labels, output=content)
    with atomic_write(parts / f"{number:06d}-{sha256(content.getbuffer()).hexdigest()}.parquet") as file:
        file.write(content.getbuffer())


def find_part(parts: Path, number: int) -> Path | None:
    """The file of the labels of a shard; None if there is none. A damaged one is removed."""
    for path in parts.glob(f"{number:06d}-*.parquet"):
        check_regular(path)
        if file_sha256(path) == path.stem.partition("-")[2]:
            return path
        path.unlink()
    return None


def new_document(
    *, source: str, run: str | None, labels: LabelKinds, size: int, images: int, images_hash: str
) -> LabelsDocument:
    """Build the document of labels yet to be written; its fingerprint is a hash of everything that affects them."""
    return LabelsDocument(
        source=source,
        run=run,
        labeller=labels.labeller.name,
        method=labels.labeller.method,
        size=size,
        images=images,
        images_hash=images_hash,
        files={},
        skin_version=skin.VERSION,
        fingerprint=fingerprint([source, run, labels.fingerprint, size, images, images_hash]),
        command=command_line(),
    )


def label_images(
    shards: ShardSet, keys: pl.Series, *, labels: LabelKinds, size: int, device: torch.device, batch_size: int
) -> pl.DataFrame:
    """Label the first len(keys) images in tar order, decoded at `size` x `size` pixels.

    Returns the columns of `tables.label_schema`, and `embedding` (float16 [D]), `pixel_tone` (Monk 1-10),
    `typology_angle` (degrees) and, if there is a classifier in addition, a structure `classifier` of its labels.
    """
    labellers = labels.labellers
    batches: list[list[dict[str, torch.Tensor]]] = [[] for _ in labellers]
    embeddings, tones, angles, remaining = [], [], [], len(keys)
    for batch in decode_all(shards, size, device=device, batch_size=batch_size):
        images = batch[:remaining]
        results, (tone, angle) = labels.label(images)
        for by_batch, (by_attribute, _) in zip(batches, results, strict=True):
            by_batch.append({name: values.float().cpu() for name, values in by_attribute.items()})
        embeddings.append(results[0][1].cpu())
        tones.append(tone.cpu())
        angles.append(angle.cpu())
        remaining -= len(images)
        if not remaining:
            break
    stacked = torch.cat(embeddings).numpy()
    frame, *others = (stack_labels(keys, labeller, found) for labeller, found in zip(labellers, batches, strict=True))
    return frame.with_columns(
        pl.Series("embedding", stacked, dtype=pl.Array(pl.Float16, stacked.shape[1])),
        pl.Series("pixel_tone", torch.cat(tones).numpy(), dtype=pl.Int8),
        pl.Series("typology_angle", torch.cat(angles).numpy(), dtype=pl.Float32),
        *(other.to_struct(CLASSIFIER) for other in others),
    )


def stack_labels(keys: pl.Series, labeller: Labeller, batches: list[dict[str, torch.Tensor]]) -> pl.DataFrame:
    """The columns of `tables.label_schema`, from the probabilities of every batch by attribute."""
    probabilities = {name: torch.cat([batch[name] for batch in batches]).numpy() for name in labeller.attributes}
    return tables.label_frame(keys, probabilities, labeller.attributes, thresholds=labeller.thresholds)
