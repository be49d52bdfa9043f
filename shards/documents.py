"""The JSON documents below OUT: typed, versioned, with one reader and one writer."""

import json
import types
import typing
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from shards.atomic_io import atomic_write, file_sha256, read_json
from shards.errors import FairfaceError
from shards.workspace import FeatureFiles, LabelFiles, RunFolder, ShardsFolder

MAX_DEPTH = 20  # of the values in a document that have no fixed type, such as options


@dataclass(kw_only=True)
class Document:
    """The content of a JSON file.

    Raise `FORMAT` when a field without a default is added, or when one is removed or changes its meaning. A document
    that describes other files is removed before the first of them is changed, and written after the last. Their
    SHA-256 are its `files`, by name.
    """

    FORMAT: ClassVar[int] = 1
    REDO: ClassVar[str] = "remove it and run the stage again"  # what to do with a file of another version


D = TypeVar("D", bound=Document)


@dataclass(kw_only=True)
class ShardEntry:
    """One tar."""

    name: str
    images: int
    bytes: int
    sha256: str | None = None  # of tars of samples; images.parquet has one for every packed image


@dataclass(kw_only=True)
class PackInputs:
    """The inputs of a pack, known before the first image is read."""

    fingerprint: str  # of the images, tables and options
    order: str  # hash of the images' order
    synthetic: bool  # rendered by `fairface synth`
    root: str  # absolute path of the images' folder
    options: dict[str, Any]  # PackConfig
    images_found: int  # below the root, before any selection
    unreadable: list[str]  # folders, and names that are not valid Unicode
    tables: list[str]
    layouts: list[str] = field(default_factory=list)  # titles of the tables' layouts
    rows: int  # of the tables
    rows_repeated: int  # whose path an earlier row has
    rows_disagreeing: int  # whose Intersection is not gender x skin group
    rows_uncoded: int  # with a label that their layout maps to no class
    matched: int  # selected images that have a row
    unmatched: dict[str, int]  # by reason and kind, such as `missing_rows`


@dataclass(kw_only=True)
class ShardsDocument(PackInputs, Document):
    """shards.json: the content of a finished pack, written last."""

    FORMAT: ClassVar[int] = 3
    REDO: ClassVar[str] = "pack again with `fairface shards --force`"

    manifest: str  # hash of every packed image's place, bytes and labels
    files: dict[str, str]  # table -> SHA-256
    images: int  # packed
    rejected: dict[str, int]  # by reason
    annotated: int  # packed images with a label of any attribute
    bytes: int  # of the packed images
    shards: list[ShardEntry]
    seconds: float
    created: str  # ISO 8601, UTC


@dataclass(kw_only=True)
class UnfinishedPack(Document):
    """The plan that the finished shards of an unfinished pack belong to."""

    REDO: ClassVar[str] = "pack again with `fairface shards --force`"

    fingerprint: str
    order: str
    root: str


@dataclass(kw_only=True)
class DataSource:
    """The images that a run was trained on."""

    manifest: str
    images: int
    synthetic: bool
    root: str
    annotated: int


@dataclass(kw_only=True)
class ThreadsRecord:
    """The number of torch's threads on a CPU, and the measured rates that it was chosen by."""

    count: int  # number of threads
    images_per_s: dict[str, float] = field(default_factory=dict)  # rate by number of threads; empty: not measured

    def __post_init__(self) -> None:
        if self.count < 1:
            raise TypeError(f"{self.count} threads")

    @property
    def rate(self) -> float | None:
        """The measured images per second with `count` threads; None if nothing was measured."""
        return self.images_per_s.get(str(self.count))


@dataclass(kw_only=True)
class RunDocument(Document):
    """config.json of a training run: the requested options, the resolved ones, the data and the progress."""

    FORMAT: ClassVar[int] = 2
    REDO: ClassVar[str] = "choose another name, train it again with --force, or remove its folder"

    name: str
    status: str  # running, stopped, finished, imported
    started: str  # ISO 8601, UTC
    finished: str | None = None
    command: str | None = None
    preset: str | None = None
    steps: int | None = None
    requested_options: dict[str, Any] | None = None  # as given; None for a run that was not trained here
    options: dict[str, Any] | None = None  # with every `auto` resolved
    versions: dict[str, str] | None = None
    device: str | None = None
    threads: ThreadsRecord | None = None  # None: on a GPU, or in a run of an older version
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 by name, once training has stopped

    def checkpoint_header(self) -> dict[str, Any]:
        """The fields that a checkpoint stores about its run, as plain values."""
        return {"run": self.name, "options": self.options}


@dataclass(kw_only=True)
class RunConfig(RunDocument):
    """config.json of a DCGAN run, of samples from an external checkpoint, or of imported labels."""

    data: DataSource | None = None
    previous_data: list[DataSource] = field(default_factory=list)  # oldest first; of a run continued on other images
    classes: dict[str, float] | None = None  # of a conditional generator, with their shares
    excluded: int = 0  # images without the label that the run needs
    parameters: dict[str, int] | None = None  # of the generator and of the discriminator
    checkpoint: str | None = None  # of a run that was only sampled from: a checkpoint trained elsewhere
    imported: str | None = None  # of a run that holds only imported labels: their CSV
    source: str | None = None  # of a run with imported samples: where they come from

    def checkpoint_header(self) -> dict[str, Any]:
        return super().checkpoint_header() | {"data": self.data and asdict(self.data), "classes": self.classes}


@dataclass(kw_only=True)
class DetectorView:
    """What was done to the images of a detector before they were resized to its input size."""

    pre_resize: int | None  # pixels that larger images were reduced to: the size of the samples among the faces
    packed_size: int | None  # pixels of the shorter side of images that the packer encoded again
    packed_quality: int  # of the JPEGs, with `packed_size`


@dataclass(kw_only=True)
class DetectorData:
    """The faces that a detector was trained and evaluated on."""

    manifest: str
    run: str | None  # whose samples are the fakes
    grouped_by: str  # annotated, labelled
    groups_hash: str | None  # of the groups that the loss uses
    attribute: str  # whose classes are the groups
    train_real: int
    train_fake: int
    test_real: int
    test_fake: int
    held_out: list[str] = field(default_factory=list)  # families and methods whose fakes were held out of training
    view: DetectorView | None = None  # None: trained by a version that did not record it


@dataclass(kw_only=True)
class DetectorConfig(RunDocument):
    """config.json of a detector."""

    FORMAT: ClassVar[int] = 3

    data: DetectorData
    group_counts: dict[str, int]  # training faces of each group
    steps_per_epoch: int
    parameters: int | None = None
    frozen: str | None = None  # hash of the weights that are not trained

    def checkpoint_header(self) -> dict[str, Any]:
        return super().checkpoint_header() | {"data": asdict(self.data)}


@dataclass(kw_only=True)
class SampleSource:
    """Where imported samples come from."""

    kind: str  # folder, tar, zip, npz, torchscript, function
    path: str  # absolute; or module:function
    identity: str  # fingerprint of the options and of the images' names, sizes and times, or of the file's content
    rejected: dict[str, int]  # images that could not be used, by reason
    synthetic: bool = False  # faces rendered by `fairface synth`


@dataclass(kw_only=True)
class SamplesDocument(Document):
    """samples.json: everything that determines the samples of a run, written last."""

    FORMAT: ClassVar[int] = 3
    REDO: ClassVar[str] = "sample again with `fairface sample --force`"

    run: str
    checkpoint: str  # or, with a source, the name of the folder, file or function
    sha256: str  # of the checkpoint; with a source, of the images or of the generator's file
    seed: int
    count: int
    weights: str | None  # ema, g; None with a source
    image_size: int
    fingerprint: str
    step: int | None
    manifest: str | None  # of the images that the generator was last trained on; None if they are unknown
    command: str
    shards: list[ShardEntry]
    files: dict[str, str]  # the table -> SHA-256
    is_constant: bool = False  # whether all samples are the same image, or each has a single colour
    shares: dict[str, float] | None = None  # of the requested classes
    truncation: float | None = None
    ema_half_life: float | None = None  # of the moving average, in images; None: as in training
    source: SampleSource | None = None  # of imported samples


@dataclass(kw_only=True)
class LabelsDocument(Document):
    """labels.json: the labeller of a folder's images, written last."""

    FORMAT: ClassVar[int] = 4
    REDO: ClassVar[str] = "label again with `fairface label --force`"

    source: str  # train, generated
    run: str | None
    labeller: str
    size: int | None  # pixels; None for imported labels
    images: int
    fingerprint: str
    files: dict[str, str]  # labels, pixels and embeddings -> SHA-256
    skin_version: int | None = None  # of the labels by pixels
    images_hash: str | None = None  # manifest of the shards, or fingerprint of the samples; None without samples
    command: str | None = None
    evaluated: bool = False  # whether the labellers were compared after it was written
    method: str = "clip"  # of labels.parquet: clip, classifier or imported
    threads: int | None = None  # of torch on a CPU; None: labelled on a GPU, or imported


@dataclass(kw_only=True)
class ProbeDocument(Document):
    """probe.json: the probe that labelled a folder's images, written last."""

    FORMAT: ClassVar[int] = 3
    REDO: ClassVar[str] = "label again with `fairface label --force`"

    fingerprint: str  # of the labels that the probe was fitted to, or of the probe and the samples' labels
    hash: str  # of the probe
    files: dict[str, str]  # the probe's labels and, of the training images, its weights and the accuracies -> SHA-256


@dataclass(kw_only=True)
class ClassifierDocument(Document):
    """classifier.json: the classifier fitted to a folder's images, written last."""

    REDO: ClassVar[str] = "remove it, and `fairface label` fits the classifier again"

    fingerprint: str  # of everything that determines the weights
    images: int  # that it was fitted to
    held_out: int  # that the thresholds were set on
    classes: dict[str, list[str]]  # fitted classes by attribute
    thresholds: dict[str, float]  # by attribute: a label of lower probability is unsure
    seed: int
    epochs: int
    seconds: float
    files: dict[str, str]  # the weights -> SHA-256


@dataclass(kw_only=True)
class FeaturesDocument(Document):
    """The document of stored features: the network that extracted them, and its input.

    It is written before the features. Each file of features has its SHA-256 in its name and the indices of its images
    in its content, so that all complete files are used, even if the extraction was interrupted.
    """

    REDO: ClassVar[str] = "remove it: `fairface detect` extracts these features again"

    images_hash: str  # manifest of the shards, or fingerprint of the samples
    model: str
    backbone: str | None
    weights: str  # hash of the frozen weights
    width: int
    image_size: int  # pixels of the network's input
    pre_resize: int | None  # pixels that larger images were first reduced to
    normalisation: list[list[float]]  # mean and standard deviation of each channel
    precision: str  # bf16, fp32
    revision: int  # of the program's extraction


@dataclass(kw_only=True)
class PredictionsDocument(Document):
    """predictions.json: the source of a detector's predictions."""

    FORMAT: ClassVar[int] = 3
    REDO: ClassVar[str] = "evaluate again with `fairface detect`, or import again with --force"

    images: int
    real: int
    fake: int
    created: str
    command: str
    files: dict[str, str]  # the table -> SHA-256
    manifest: str | None = None  # of the shards whose images were evaluated
    samples: dict[str, str] = field(default_factory=dict)  # run -> fingerprint of its evaluated samples
    parts: list[str] = field(default_factory=list)  # cached predictions that they were merged from
    imported: str | None = None  # the CSV
    sha256: str | None = None  # of that CSV


@dataclass(kw_only=True)
class TablesDocument(Document):
    """The tables that the report derived, or a detector's metrics, and what they were made of."""

    REDO: ClassVar[str] = "build the report again with `fairface report`"

    # run, detector or run/detector -> fingerprint of its inputs; "" -> that of the training images' labels
    made_of: dict[str, str]
    files: dict[str, str]  # the tables -> SHA-256


@dataclass(kw_only=True)
class AttributesDocument(Document):
    """attributes.json: the SHA-256 of the user's own attributes, which were copied to OUT/attributes.toml."""

    REDO: ClassVar[str] = "pass the file again with `fairface label --attributes FILE`, or pack again with it"

    files: dict[str, str]  # the copy -> SHA-256


@dataclass(kw_only=True)
class ReferenceDocument(Document):
    """reference.json: the CSV of reference shares that was copied to OUT/reference.csv."""

    REDO: ClassVar[str] = "pass the file again with `fairface report --reference FILE`"

    name: str  # of the file
    sha256: str  # of the file
    files: dict[str, str]  # the copy -> SHA-256
    replaces_training: bool = False  # whether samples are compared with it instead of with the training images


def load_shards_json(shards: ShardsFolder) -> ShardsDocument:
    """Read the document of a finished pack.

    Raises FairfaceError if nothing was packed, and for a document of another version.
    """
    document = read_document(shards.document, ShardsDocument)
    if document is None:
        raise FairfaceError(f"no finished shards in {shards.folder}: run `fairface shards` first")
    listed = sum(shard.images for shard in document.shards)
    if listed != document.images:
        raise FairfaceError(
            f"{shards.document} is damaged (it lists shards of {listed:,} images, and counts {document.images:,}): "
            f"{document.REDO}"
        )
    return document


def file_hashes(*paths: Path) -> dict[str, str]:
    """The `files` of a document: the SHA-256 of each file by its name."""
    return {path.name: file_sha256(path) for path in paths}


def changed_files(folder: Path, files: dict[str, str]) -> list[str]:
    """The names of the `files` of a document that are missing from a folder, or have another SHA-256 there."""
    return [name for name, digest in files.items() if not _has_sha256(folder / name, digest)]


def _has_sha256(path: Path, digest: str) -> bool:
    return path.is_file() and file_sha256(path) == digest


def check_files(folder: Path, document: Document, files: dict[str, str]) -> None:
    """Raise FairfaceError if one of the `files` of a document is missing or was changed."""
    if changed := changed_files(folder, files):
        raise FairfaceError(f"{folder / changed[0]} is missing or was changed after it was written: {document.REDO}")


def stale_labels(files: LabelFiles, *, images_hash: str | None) -> str | None:
    """Why labels must not be used: they are labels of other images than the present ones, which have `images_hash`.

    None if they are of these images, or if there are no labels. Raises FairfaceError for a damaged document.
    """
    document = read_document(files.document, LabelsDocument)
    if document is None or document.images_hash == images_hash:
        return None
    images = "samples" if document.source == "generated" else "training images"
    return f"the labels in {files.folder} are labels of other {images} than the present ones: {document.REDO}"


def stale_features(files: FeatureFiles, *, images_hash: str | None) -> list[Path]:
    """The files of features of other images than the present ones, which have `images_hash`, and of unknown ones."""
    current = set()
    for path in files.documents():
        with suppress(FairfaceError):  # a damaged document, or one of another version
            document = read_document(path, FeaturesDocument)
            if document and document.images_hash == images_hash:
                current.add(path.stem)
    return [path for path in files.all() if path.stem.partition("-")[0] not in current]


def training_images_hash(shards: ShardsFolder) -> str | None:
    """The `images_hash` of labels of the packed images; None without a finished pack."""
    document = read_document(shards.document, ShardsDocument)
    return document.manifest if document else None


def samples_images_hash(run: RunFolder) -> str | None:
    """The `images_hash` of labels of a run's samples; None if the run has none."""
    document = read_document(run.samples_document, SamplesDocument)
    return document.fingerprint if document else None


def write_document(path: Path, document: Document) -> None:
    """Write a document atomically, with its `format`."""
    with atomic_write(path) as file:
        file.write(encode_document(document))


def encode_document(document: Document) -> bytes:
    """The content of a document's file: indented JSON, with its `format`."""
    value = {"format": document.FORMAT} | asdict(document)
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def read_document(path: Path, kind: type[D]) -> D | None:
    """Read the document in a file; None if the file does not exist.

    Raises FairfaceError for a file of another version, and for one that is damaged.
    """
    value = read_json(path)
    if value is None and not path.exists():
        return None
    version = value.pop("format", None) if isinstance(value, dict) else None
    if version != kind.FORMAT:
        raise FairfaceError(f"{path} is of format {version}, and this version reads {kind.FORMAT}: {kind.REDO}")
    try:
        return cast(D, _parse_dataclass(value, kind))
    except TypeError as error:
        raise FairfaceError(f"{path} is damaged ({error}): {kind.REDO}") from error


def _parse(value: Any, kind: Any) -> Any:
    """Convert `value` to the annotated type `kind`. Raises TypeError that says what does not fit."""
    if kind is Any:
        _check_depth(value, MAX_DEPTH)
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _parse(value, next(one for one in arguments if one is not type(None)))
    if is_dataclass(kind):
        return _parse_dataclass(value, kind)
    if origin is list and isinstance(value, list):
        return [_parse(item, arguments[0]) for item in value]
    if origin is dict and isinstance(value, dict):
        return {name: _parse(item, arguments[1]) for name, item in value.items()}
    expected = origin or kind
    if expected is float and type(value) is int and _is_integer(value):
        return float(value)
    if not isinstance(value, expected) or (expected is int and not _is_integer(value)):
        raise TypeError(f"{value!r:.40} where {getattr(expected, '__name__', expected)} should be")
    return value


def _check_depth(value: Any, depth: int) -> None:
    """Raise TypeError for a value that is nested deeper than `depth`: Python could not copy, hash or write it."""
    if isinstance(value, dict | list):
        if not depth:
            raise TypeError("it is nested too deeply")
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, depth - 1)


def _is_integer(value: int) -> bool:
    """Whether a number is an integer of 64 bits, which SQL can read; JSON's are unlimited."""
    return not isinstance(value, bool) and -(2**63) <= value < 2**63


def _parse_dataclass(value: Any, kind: Any) -> Any:
    """A JSON object as a dataclass; fields with defaults may be missing."""
    if not isinstance(value, dict):
        raise TypeError(f"{value!r:.40} where an object should be")
    hints = typing.get_type_hints(kind)
    if unknown := value.keys() - {field.name for field in fields(kind)}:
        raise TypeError(f"unknown field {min(unknown)!r}")
    parsed = {}
    for name, item in value.items():
        try:
            parsed[name] = _parse(item, hints[name])
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
    return kind(**parsed)
