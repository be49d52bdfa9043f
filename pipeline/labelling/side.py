"""Labels the images of one side of the comparison: the training images or a run's samples."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
from tqdm import tqdm

from models import clip, skin
from pipeline.data.decoder import decode_all
from pipeline.data.shard_set import ShardSet
from pipeline.labelling import tables
from pipeline.runtime import command_line
from shards import distributed
from shards.atomic_io import fingerprint, is_complete_parquet, read_parquet, write_parquet
from shards.documents import LabelsDocument, read_document, write_document
from shards.errors import FairfaceError
from shards.workspace import LabelFiles


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

    def label(
        self, labeller: clip.Labeller, device: torch.device, *, batch_size: int, force: bool, progress: bool
    ) -> SideResult:
        """Write labels.parquet, pixels.parquet, embeddings.parquet and labels.json, unless they are up to date.

        The labels of every shard are saved as soon as they are complete; a later call labels only the missing ones.
        """
        old = distributed.run_on_rank0(lambda: None if force else self.find_labels())
        if old:
            distributed.run_on_rank0(lambda: shutil.rmtree(self.files.parts, ignore_errors=True))
            return SideResult(old, unchanged=True)
        parts = self.files.parts / self.document.fingerprint
        if force:
            distributed.run_on_rank0(lambda: shutil.rmtree(parts, ignore_errors=True))
        distributed.run_on_all_ranks(
            lambda: self.label_parts(parts, labeller, device=device, batch_size=batch_size, progress=progress)
        )
        distributed.run_on_rank0(lambda: self.merge_parts(parts))
        return SideResult(self.document, unchanged=False)

    def find_labels(self) -> LabelsDocument | None:
        """The document of complete labels of these images by this labeller; None if there are none."""
        old = read_document(self.files.document, LabelsDocument)
        complete = all(map(is_complete_parquet, (self.files.labels, self.files.pixels, self.files.embeddings)))
        return old if old and complete and old.fingerprint == self.document.fingerprint else None

    def label_parts(
        self, parts: Path, labeller: clip.Labeller, *, device: torch.device, batch_size: int, progress: bool
    ) -> None:
        """Write one Parquet file per shard into `parts`; every rank labels its share of the missing ones."""
        assert self.document.size is not None
        first = 0
        with tqdm(
            total=len(self.keys), unit="img", desc=f"labelling with {labeller.name}", disable=not progress
        ) as bar:
            for number, images in enumerate(self.shards.sizes):
                keys = self.keys[first : first + images]
                path = parts / f"{number:06d}.parquet"
                is_mine = number % distributed.world_size() == distributed.rank()
                if len(keys) and is_mine and not is_complete_parquet(path):
                    shard, _ = self.shards.covering(range(first, first + len(keys)))
                    labels = label_images(
                        shard, keys, labeller=labeller, size=self.document.size, device=device, batch_size=batch_size
                    )
                    write_parquet(path, labels)
                first += images
                bar.update(len(keys))

    def merge_parts(self, parts: Path) -> None:
        """Merge the labels of all shards. labels.json is written last, as a sign that everything is complete."""
        table = pl.concat([read_parquet(path) for path in sorted(parts.glob("*.parquet"))])
        if not table["key"].equals(self.keys, check_dtypes=False, null_equal=True):
            raise FairfaceError(
                f"some labels of {self.files.folder} are missing, perhaps because another process labelled it at the "
                "same time: rerun the command"
            )
        for path in self.files.all():
            path.unlink(missing_ok=True)
        # embeddings are not compressed: their bits are nearly random
        write_parquet(self.files.embeddings, table.select("key", "embedding"), compress=False)
        pixels = table.select("key", skin_tone="pixel_tone", typology_angle="typology_angle")
        tables.write_label_table(
            self.files.pixels, pixels, document=self.document, method="pixels", labeller=f"pixels-{skin.VERSION}"
        )
        labels = table.drop("embedding", "pixel_tone", "typology_angle")
        tables.write_label_table(
            self.files.labels, labels, document=self.document, method="clip", labeller=self.document.labeller
        )
        write_document(self.files.document, self.document)
        shutil.rmtree(self.files.parts)


def new_document(
    *, source: str, run: str | None, labeller: str, size: int, images: int, images_hash: str
) -> LabelsDocument:
    """Build the document of labels yet to be written; its fingerprint is a hash of everything that affects them."""
    return LabelsDocument(
        source=source,
        run=run,
        labeller=labeller,
        size=size,
        images=images,
        images_hash=images_hash,
        skin_version=skin.VERSION,
        fingerprint=fingerprint([source, run, labeller, size, images, images_hash, skin.VERSION]),
        command=command_line(),
    )


def label_images(
    shards: ShardSet, keys: pl.Series, *, labeller: clip.Labeller, size: int, device: torch.device, batch_size: int
) -> pl.DataFrame:
    """Label the first len(keys) images in tar order, decoded at `size` x `size` pixels.

    Returns the columns of `tables.label_frame`, and `embedding` (float16 [D]), `pixel_tone` (Monk 1-10) and
    `typology_angle` (degrees).
    """
    probabilities, embeddings, tones, angles, remaining = [], [], [], [], len(keys)
    for batch in decode_all(shards, size, device=device, batch_size=batch_size):
        images = batch[:remaining]
        by_attribute, embedding = labeller.label(images.permute(0, 3, 1, 2))
        probabilities.append(torch.cat([by_attribute[name] for name in clip.CLASSES], 1).float().cpu())
        embeddings.append(embedding.cpu())
        tone, angle = skin.read_skin(images)
        tones.append(tone.cpu())
        angles.append(angle.cpu())
        remaining -= len(images)
        if not remaining:
            break
    stacked = torch.cat(embeddings).numpy()
    return tables.label_frame(keys, torch.cat(probabilities).numpy()).with_columns(
        pl.Series("embedding", stacked, dtype=pl.Array(pl.Float16, stacked.shape[1])),
        pl.Series("pixel_tone", torch.cat(tones).numpy(), dtype=pl.Int8),
        pl.Series("typology_angle", torch.cat(angles).numpy(), dtype=pl.Float32),
    )
