"""Checks that files have the SHA-256 in their documents, before numbers are computed from them."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from shards.concurrency import available_cpus
from shards.documents import (
    Document,
    LabelsDocument,
    PredictionsDocument,
    ProbeDocument,
    RunConfig,
    SamplesDocument,
    ShardsDocument,
    check_files,
    read_document,
)
from shards.workspace import DetectorFolder, LabelFiles, RunFolder, ShardsFolder


@dataclass(frozen=True)
class DescribedFile:
    """A file with its SHA-256, and the document that lists it."""

    path: Path
    document: Document
    sha256: str

    def check(self) -> None:
        """Raise FairfaceError if the file is missing or was changed."""
        check_files(self.path.parent, self.document, {self.path.name: self.sha256})


def check_unchanged(files: Iterable[DescribedFile]) -> None:
    """Raise FairfaceError, which names the command to run, if one of the files is missing or was changed."""
    with ThreadPoolExecutor(available_cpus()) as pool:
        for _ in pool.map(DescribedFile.check, files):
            pass


def training_files(shards: ShardsFolder, *, embeddings: bool = True) -> list[DescribedFile]:
    """The table of the training images, and their labels, with or without the embeddings."""
    images = described_files(shards.document, ShardsDocument, only=shards.images)
    return images + label_files(shards.label_files, embeddings=embeddings)


def run_files(run: RunFolder) -> list[DescribedFile]:
    """The table of a run's samples, their labels, and the steps of its training."""
    files = described_files(run.config, RunConfig, only=run.steps) if run.steps.exists() else []
    return files + sample_files(run) + label_files(run.label_files)


def sample_files(run: RunFolder) -> list[DescribedFile]:
    """The table of a run's samples, if there is one."""
    if not run.samples_table.exists():
        return []
    return described_files(run.samples_document, SamplesDocument, only=run.samples_table)


def label_files(files: LabelFiles, *, embeddings: bool = True) -> list[DescribedFile]:
    """The label files of one side, with or without the embeddings; none before it is labelled."""
    if not files.labels.exists():
        return []
    described = described_files(files.document, LabelsDocument) + described_files(files.probe_document, ProbeDocument)
    unused = {files.probe_weights} if embeddings else {files.probe_weights, files.embeddings}
    return [file for file in described if file.path not in unused]


def prediction_files(detector: DetectorFolder) -> list[DescribedFile]:
    """A detector's predictions."""
    return described_files(detector.predictions_document, PredictionsDocument)


def described_files(path: Path, kind: type[Document], *, only: Path | None = None) -> list[DescribedFile]:
    """The files that the document at `path` describes, or of these only the file `only`; none without a document."""
    document = read_document(path, kind)
    hashes: dict[str, str] = getattr(document, "files", {})
    files = [DescribedFile(path.parent / name, document, digest) for name, digest in hashes.items() if document]
    return [file for file in files if only is None or file.path == only]
