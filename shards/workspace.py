"""The path of every file below OUT. No other module builds such a path."""

import re
from dataclasses import dataclass
from pathlib import Path

from shards.errors import FairfaceError

LOCK = ".lock"  # the file name of a folder's lock
SYNTHETIC_MARKER = "synthetic.json"  # in every folder of faces rendered by `fairface synth`
REPORT_TABLES = (
    "estimates",
    "method_estimates",
    "reference_estimates",
    "distances",
    "quality",
    "neighbours",
    "confidence_shift",
    "audit",
    "audit_confusion",
    "confusion",
)
STUDY_TABLES = ("estimates", "paired")  # of a study's report
DETECTOR_TABLES = ("detection_metrics", "tradeoff_points", "repair", "repair_thresholds")  # from its predictions
# Detectors that ignore the image. Their rows stand next to those of real detectors; they have no folders.
TRIVIAL_DETECTORS = ("(majority)", "(minority)", "(random)")
# `--model all`, `--param run=newest` and `--param detector=(random)` would otherwise be ambiguous
RESERVED_NAMES = ("all", "newest", *TRIVIAL_DETECTORS)
MAX_NAME_BYTES = 200  # the file system's limit is 255, and names of temporary files are longer
SHARD_FILE = re.compile(r"shard-[0-9]{6,}\.(tar|idx)")
FEATURE_FILE = re.compile(r"[0-9a-f]{16}(\.json|-[0-9a-f]{64}\.safetensors)")


def is_unicode(path: str) -> bool:
    """Whether a path is valid Unicode, which documents, Parquet tables and tar indices require."""
    return path.encode(errors="replace").decode() == path


def is_valid_name(name: str) -> bool:
    """Whether `name` can name a run or a detector: a single visible folder, without wildcards or control characters."""
    return (
        bool(name)
        and name == Path(name).name
        and not name.startswith((".", "-"))
        and not set(name) & set("*?[]")
        and name.isprintable()  # neither control characters nor bytes that are not UTF-8
        and len(name.encode()) <= MAX_NAME_BYTES
        and name not in RESERVED_NAMES
    )


def check_name(name: str, option: str) -> str:
    """`name`, if it can name a folder below OUT. Raises FairfaceError that starts with `option` otherwise."""
    if not is_valid_name(name):
        raise FairfaceError(
            f"{option} {name!r}: give the name of a single folder of at most {MAX_NAME_BYTES} bytes, without control "
            f"characters and * ? [ ], that does not start with . or -, and is none of {', '.join(RESERVED_NAMES)}"
        )
    return name


def synthetic_lock(folder: Path) -> Path:
    """The lock of a folder of synthetic faces, for `shards.locks`."""
    return SyntheticFolder(folder).lock


@dataclass(frozen=True)
class SyntheticFolder:
    """`OUT/synthetic`, or any other folder that `fairface synth` renders faces into, next to files of the user's."""

    folder: Path

    @property
    def lock(self) -> Path:
        return self.folder / LOCK

    @property
    def document(self) -> Path:
        return self.folder / SYNTHETIC_MARKER

    @property
    def checksums(self) -> Path:
        """The list of all files that were rendered, for `sha256sum -c`."""
        return self.folder / "synthetic.sha256"

    @property
    def table(self) -> Path:
        return self.folder / "train.csv"

    @property
    def rendering(self) -> "SyntheticFolder":
        """The faces that are being rendered, until all of them are finished."""
        return SyntheticFolder(self.folder / ".rendering")

    def exists(self) -> bool:
        """Whether the folder holds synthetic faces, perhaps unfinished ones."""
        return any(path.exists() for path in (self.document, self.checksums, self.rendering.folder))


@dataclass(frozen=True)
class LabelFiles:
    """The label files of one folder of images: the shards or a run's samples."""

    folder: Path

    @property
    def lock(self) -> Path:
        """The lock of the labels alone: images may be read while they are labelled."""
        return self.folder / ".labels.lock"

    @property
    def document(self) -> Path:
        return self.folder / "labels.json"

    @property
    def labels(self) -> Path:
        return self.folder / "labels.parquet"

    @property
    def pixels(self) -> Path:
        return self.folder / "pixels.parquet"

    @property
    def embeddings(self) -> Path:
        return self.folder / "embeddings.parquet"

    @property
    def probe_document(self) -> Path:
        return self.folder / "probe.json"

    @property
    def probe_labels(self) -> Path:
        return self.folder / "probe.parquet"

    @property
    def probe_weights(self) -> Path:
        return self.folder / "probe.safetensors"

    @property
    def classifier_labels(self) -> Path:
        """The classifier's labels, if it labels in addition to another labeller."""
        return self.folder / "classifier.parquet"

    @property
    def classifier_document(self) -> Path:
        return self.folder / "classifier.json"

    @property
    def classifier_weights(self) -> Path:
        return self.folder / "classifier.safetensors"

    @property
    def classifier_checkpoints(self) -> Path:
        """The state of an unfinished fit, in a folder named after its fingerprint."""
        return self.folder / ".classifier"

    @property
    def labellers(self) -> Path:
        return self.folder / "labellers.parquet"

    @property
    def parts(self) -> Path:
        """Labels of single shards until all of them are finished."""
        return self.folder / ".labels"

    def methods(self) -> list[Path]:
        """The labels of every method."""
        return [self.labels, self.classifier_labels, self.probe_labels, self.pixels]

    def label_tables(self) -> list[Path]:
        """Every file that is replaced when the images are labelled again, the document first."""
        return [
            self.document,
            self.labels,
            self.classifier_labels,
            self.pixels,
            self.embeddings,
            self.probe_document,
            self.probe_labels,
            self.probe_weights,
            self.labellers,
        ]

    def all(self) -> list[Path]:
        """Every file that describes the images, a document first; they are removed when the images change."""
        return [*self.label_tables(), self.classifier_document, self.classifier_weights]


@dataclass(frozen=True)
class FeatureFiles:
    """The features of one folder of images, the shards or a run's samples, as detectors with frozen backbones use them.

    `view` is a hash of the backbone and its input. Each view has a document and any number of parts.
    """

    folder: Path

    @property
    def lock(self) -> Path:
        return self.folder / LOCK

    def document(self, view: str) -> Path:
        return self.folder / f"{view}.json"

    def part(self, view: str, sha256: str) -> Path:
        """The features of some of the images; the name contains the hash of the file."""
        return self.folder / f"{view}-{sha256}.safetensors"

    def documents(self) -> list[Path]:
        return [path for path in self.all() if path.suffix == ".json"]

    def parts(self, view: str = "") -> list[Path]:
        """The parts of a view, by default of all views."""
        return [path for path in self.all() if path.suffix == ".safetensors" and path.name.startswith(view)]

    def all(self) -> list[Path]:
        """Every file with the name of stored features, documents first; they are removed when the images change."""
        own = (path for path in self.folder.glob("*") if FEATURE_FILE.fullmatch(path.name))
        return sorted(own, key=lambda path: (path.suffix, path.name))


@dataclass(frozen=True)
class ShardsFolder:
    """`OUT/shards`, or any other folder that images are packed into."""

    folder: Path

    @property
    def lock(self) -> Path:
        """The lock of the tars and of images.parquet."""
        return self.folder / LOCK

    @property
    def document(self) -> Path:
        return self.folder / "shards.json"

    @property
    def images(self) -> Path:
        return self.folder / "images.parquet"

    @property
    def unmatched(self) -> Path:
        return self.folder / "unmatched.parquet"

    @property
    def unfinished(self) -> Path:
        """The folder with the state of an unfinished pack."""
        return self.folder / ".unfinished"

    @property
    def unfinished_document(self) -> Path:
        return self.unfinished / "plan.json"

    def finished_rows(self, shard: str) -> Path:
        """The rows of a finished shard's images, until the whole pack is finished."""
        return self.unfinished / f"{shard}.csv"

    def tar(self, shard: str) -> Path:
        return self.folder / shard

    def index(self, shard: str) -> Path:
        """The index of a tar, in DALI's format."""
        return self.tar(shard).with_suffix(".idx")

    def tars_and_indices(self) -> list[Path]:
        """Every file with the name of a packed tar or index, by name."""
        return sorted(path for path in self.folder.glob("shard-*") if SHARD_FILE.fullmatch(path.name))

    @property
    def label_files(self) -> LabelFiles:
        return LabelFiles(self.folder)

    @property
    def features(self) -> FeatureFiles:
        return FeatureFiles(self.folder / "features")

    def tars(self) -> list[Path]:
        """Every shard, by name."""
        return sorted(self.folder.glob("*.tar"))


@dataclass(frozen=True)
class TrainingFolder:
    """The files of a training run, of the DCGAN or of a detector."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def lock(self) -> Path:
        """The lock of config.json and of what training writes."""
        return self.folder / LOCK

    @property
    def config(self) -> Path:
        return self.folder / "config.json"

    @property
    def steps(self) -> Path:
        return self.folder / "steps.parquet"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """The checkpoint of a step."""
        return self.checkpoints / f"step_{step:09d}.pt"

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"

    @property
    def grids(self) -> Path:
        return self.folder / "grids"

    def grid(self, step: int) -> Path:
        """The grid of samples rendered after a step."""
        return self.grids / f"step_{step:09d}.png"

    def training_files(self) -> list[Path]:
        """The files and folders that training writes, config.json last."""
        return [self.checkpoints, self.grids, self.tensorboard, self.steps, self.config]

    def results(self) -> list[Path]:
        """The files and folders that were made of the trained weights, documents first."""
        return []

    def result_locks(self) -> list[Path]:
        """The locks of the results; `lock` is that of the training."""
        return []


@dataclass(frozen=True)
class AuditFolder:
    """`OUT/runs/<name>/audit`: which of a run's faces people label, and their answers."""

    folder: Path

    @property
    def lock(self) -> Path:
        return self.folder / LOCK

    @property
    def plan_document(self) -> Path:
        return self.folder / "plan.json"

    @property
    def plan(self) -> Path:
        return self.folder / "plan.parquet"

    @property
    def page(self) -> Path:
        """The page on which people label the faces."""
        return self.folder / "page.html"

    @property
    def ratings_document(self) -> Path:
        return self.folder / "ratings.json"

    @property
    def ratings(self) -> Path:
        return self.folder / "ratings.parquet"


@dataclass(frozen=True)
class RunFolder(TrainingFolder):
    """`OUT/runs/<name>`: a training run of the DCGAN and its samples."""

    @property
    def samples_lock(self) -> Path:
        """The lock of the samples alone: a run may be sampled from while it is trained."""
        return self.folder / ".samples.lock"

    @property
    def samples(self) -> Path:
        """The folder of the samples' tars."""
        return self.folder / "samples"

    def sample_tars(self) -> list[Path]:
        """Every tar of samples, by name."""
        return sorted(self.samples.glob("*.tar"))

    @property
    def samples_document(self) -> Path:
        return self.folder / "samples.json"

    @property
    def samples_table(self) -> Path:
        return self.folder / "samples.parquet"

    @property
    def new_samples(self) -> Path:
        """Tars of samples until all of them are written."""
        return self.folder / ".samples"

    def new_samples_tar(self, number: int) -> Path:
        """A tar of samples, as it is written."""
        return self.new_samples / f"samples-{number:06d}.tar"

    @property
    def import_workspace(self) -> "Workspace":
        """The images being imported, unpacked and packed, until they are the run's samples."""
        return Workspace(self.folder / ".import")

    @property
    def label_files(self) -> LabelFiles:
        return LabelFiles(self.folder)

    @property
    def features(self) -> FeatureFiles:
        return FeatureFiles(self.folder / "features")

    @property
    def audit(self) -> AuditFolder:
        """Not among `results`: people's answers are not removed with the samples."""
        return AuditFolder(self.folder / "audit")

    def results(self) -> list[Path]:
        labels = self.label_files
        samples = [
            self.samples_document,
            self.samples_table,
            self.samples,
            self.features.folder,
            self.new_samples,
            self.import_workspace.root,
        ]
        return [*labels.all(), labels.parts, *samples]

    def result_locks(self) -> list[Path]:
        return [self.samples_lock, self.label_files.lock]


@dataclass(frozen=True)
class DetectorFolder(TrainingFolder):
    """`OUT/detectors/<name>`: a trained or imported detector and its predictions."""

    @property
    def predictions(self) -> Path:
        return self.folder / "predictions.parquet"

    @property
    def predictions_document(self) -> Path:
        return self.folder / "predictions.json"

    @property
    def cached_predictions(self) -> Path:
        """The folder of predictions by evaluation set: no set is evaluated twice."""
        return self.folder / "cached_predictions"

    def cached(self, fingerprint: str, sha256: str) -> Path:
        """The predictions of one evaluation set; the name contains the hash of the file."""
        return self.cached_predictions / f"{fingerprint}-{sha256}.parquet"

    def table(self, name: str) -> Path:
        """One of DETECTOR_TABLES."""
        return self.folder / f"{name}.parquet"

    def tables(self) -> list[Path]:
        """The tables that are computed from the predictions."""
        return [self.table(name) for name in DETECTOR_TABLES]

    @property
    def detection_metrics(self) -> Path:
        return self.table("detection_metrics")

    @property
    def metrics_document(self) -> Path:
        """The document of the tables that are computed from the predictions."""
        return self.folder / "detection_metrics.json"

    def results(self) -> list[Path]:
        documents = [self.predictions_document, self.metrics_document]
        return [*documents, self.predictions, *self.tables(), self.cached_predictions]


@dataclass(frozen=True)
class ReportFolder:
    """`OUT/report`, or the folder of a single run's page below it."""

    folder: Path

    @property
    def lock(self) -> Path:
        """The lock of the folder and of the pages of single runs below it."""
        return self.folder / LOCK

    @property
    def page(self) -> Path:
        return self.folder / "index.html"

    @property
    def document(self) -> Path:
        return self.folder / "report.json"

    @property
    def tables_document(self) -> Path:
        """The document of the tables of all runs."""
        return self.folder / "tables.json"

    def table(self, name: str) -> Path:
        return self.folder / f"{name}.parquet"

    @property
    def rate_estimates(self) -> Path:
        """How often detectors call the samples of the runs fake, by group."""
        return self.table("rate_estimates")

    @property
    def rates_document(self) -> Path:
        """The document of rate_estimates, which also depends on predictions."""
        return self.folder / "rate_estimates.json"

    def run(self, name: str) -> "ReportFolder":
        """The page of one of several runs."""
        return ReportFolder(self.folder / "runs" / name)


@dataclass(frozen=True)
class StudyFolder:
    """`OUT/studies/<name>`: the state and the report of a study; its runs are below `OUT/runs`."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def lock(self) -> Path:
        """The lock of the study: exclusive for planning and reporting, shared by processes that execute its runs."""
        return self.folder / LOCK

    @property
    def document(self) -> Path:
        return self.folder / "study.json"

    @property
    def records(self) -> Path:
        """The folder of the runs' records."""
        return self.folder / "runs"

    def record(self, run: str) -> Path:
        """The record of a run: a StudyRunDocument."""
        return self.records / f"{run}.json"

    def task_lock(self, run: str) -> Path:
        """The lock of a training run and of the runs that are sampled from it."""
        return self.folder / ".locks" / f".{run}.lock"

    def log(self, run: str) -> Path:
        """The output of the commands of a run."""
        return self.folder / "logs" / f"{run}.log"

    @property
    def report(self) -> ReportFolder:
        return ReportFolder(self.folder / "report")


@dataclass(frozen=True)
class Workspace:
    """The paths of everything below OUT; nothing is read or created."""

    root: Path

    @property
    def attributes(self) -> Path:
        """The user's own attributes, as given with --attributes; without this file the built-in ones apply."""
        return self.root / "attributes.toml"

    @property
    def attributes_document(self) -> Path:
        return self.root / "attributes.json"

    @property
    def reference(self) -> Path:
        """The copy of the CSV passed with --reference."""
        return self.root / "reference.csv"

    @property
    def reference_document(self) -> Path:
        return self.root / "reference.json"

    @property
    def synthetic(self) -> Path:
        return self.root / "synthetic"

    @property
    def unpacked(self) -> Path:
        """The images of an archive, before they are packed."""
        return self.root / "unpacked"

    @property
    def shards(self) -> ShardsFolder:
        return ShardsFolder(self.root / "shards")

    @property
    def report(self) -> ReportFolder:
        return ReportFolder(self.root / "report")

    @property
    def runs_folder(self) -> Path:
        return self.root / "runs"

    @property
    def detectors_folder(self) -> Path:
        return self.root / "detectors"

    def run(self, name: str) -> RunFolder:
        """Raises FairfaceError for a name that is not that of a single folder."""
        return RunFolder(self.runs_folder / check_name(name, "--run"))

    def detector(self, name: str) -> DetectorFolder:
        """Raises FairfaceError for a name that is not that of a single folder."""
        return DetectorFolder(self.detectors_folder / check_name(name, "--name"))

    @property
    def labelling_lock(self) -> Path:
        """The lock that the runs of studies take in turn to label, because each of them labels the training images."""
        return self.root / "studies" / ".labels.lock"

    def study(self, name: str) -> StudyFolder:
        """Raises FairfaceError for a name that is not that of a single folder."""
        return StudyFolder(self.root / "studies" / check_name(name, "study"))

    def studies(self) -> list[StudyFolder]:
        """Every study that has a study.json, by name."""
        studies = map(StudyFolder, named_folders(self.root / "studies"))
        return [study for study in studies if study.document.exists()]

    def runs(self) -> list[RunFolder]:
        """Every run that has a config.json, by name; folders whose name is not valid are passed over."""
        runs = map(RunFolder, named_folders(self.runs_folder))
        return [run for run in runs if run.config.exists()]

    def detectors(self) -> list[DetectorFolder]:
        """Every folder of a detector, by name; folders whose name is not valid are passed over."""
        return [DetectorFolder(path) for path in named_folders(self.detectors_folder)]

    def misnamed_folders(self) -> list[Path]:
        """The visible folders whose names are not valid for a run or a detector: they are passed over."""
        paths = [path for parent in (self.runs_folder, self.detectors_folder) for path in sorted(parent.glob("*"))]
        return [path for path in paths if not (path.name.startswith(".") or is_valid_name(path.name)) and path.is_dir()]

    def view_files(self) -> dict[str, list[Path]]:
        """The existing files of every SQL view, by view."""
        runs, detectors = list(map(RunFolder, named_folders(self.runs_folder))), self.detectors()
        labels, studies = [self.shards.label_files, *(run.label_files for run in runs)], self.studies()
        files = {
            "images": [self.shards.images],
            "unmatched": [self.shards.unmatched],
            "labels": [path for one in labels for path in one.methods()],
            "labellers": [self.shards.label_files.labellers],
            "samples": [run.samples_table for run in runs],
            "steps": [run.steps for run in runs],
            "runs": [run.config for run in runs],
            "audit_faces": [run.audit.plan for run in runs],
            "ratings": [run.audit.ratings for run in runs],
            **{name: [self.report.table(name)] for name in REPORT_TABLES},
            "rate_estimates": [self.report.rate_estimates],
            "detectors": [detector.config for detector in detectors],
            "predictions": [detector.predictions for detector in detectors],
            **{name: [detector.table(name) for detector in detectors] for name in DETECTOR_TABLES},
            "studies": [study.document for study in studies],
            "study_records": [path for study in studies for path in sorted(study.records.glob("*.json"))],
            **{f"study_{name}": [study.report.table(name) for study in studies] for name in STUDY_TABLES},
        }
        return {view: [path for path in paths if path.is_file()] for view, paths in files.items()}


def named_folders(parent: Path) -> list[Path]:
    """The folders in `parent` whose names are valid, by name."""
    return [path for path in sorted(parent.glob("*")) if is_valid_name(path.name) and path.is_dir()]
