"""The path of every file below OUT. No other module builds such a path."""

from dataclasses import dataclass
from pathlib import Path

from shards.errors import FairfaceError

SYNTHETIC_MARKER = "synthetic.json"  # in every folder of faces rendered by `fairface synth`
REPORT_TABLES = ("estimates", "method_estimates", "distances", "quality", "neighbours", "confusion")
RESERVED_NAMES = ("all",)  # `--model all` and the like would otherwise be ambiguous
REPORT_FIGURES = ("comparison-*", "runs-*", "ratios.*", "losses.*", "discriminator.*", "faces-*.png")


def is_unicode(path: str) -> bool:
    """Whether a path is valid Unicode, which documents, Parquet tables and tar indices require."""
    return path.encode(errors="replace").decode() == path


def check_name(name: str, option: str) -> str:
    """`name`, if it can name a folder below OUT. Raises FairfaceError that starts with `option` otherwise."""
    if not name or name != Path(name).name or name.startswith(".") or name in RESERVED_NAMES:
        raise FairfaceError(f"{option} {name}: give the name of a single folder, other than {RESERVED_NAMES[0]!r}")
    if not is_unicode(name):
        raise FairfaceError(f"{option} {name!r}: give a name in UTF-8")
    return name


@dataclass(frozen=True)
class LabelFiles:
    """The label files of one folder of images: the shards or a run's samples."""

    folder: Path

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
    def labellers(self) -> Path:
        return self.folder / "labellers.parquet"

    @property
    def parts(self) -> Path:
        """Labels of single shards until all of them are finished."""
        return self.folder / ".labels"

    def all(self) -> list[Path]:
        """Every file that describes the images, the document first; they are removed when the images change."""
        return [
            self.document,
            self.labels,
            self.pixels,
            self.embeddings,
            self.probe_document,
            self.probe_labels,
            self.probe_weights,
            self.labellers,
        ]


@dataclass(frozen=True)
class ShardsFolder:
    """`OUT/shards`, or any other folder that images are packed into."""

    folder: Path

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
        """Every tar and every index in the folder, by name."""
        return sorted([*self.folder.glob("shard-*.tar"), *self.folder.glob("shard-*.idx")])

    @property
    def label_files(self) -> LabelFiles:
        return LabelFiles(self.folder)

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
    def config(self) -> Path:
        return self.folder / "config.json"

    @property
    def steps(self) -> Path:
        return self.folder / "steps.parquet"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"

    @property
    def grids(self) -> Path:
        return self.folder / "grids"

    def grid(self, step: int) -> Path:
        """The grid of samples rendered after a step."""
        return self.grids / f"step_{step:09d}.png"


@dataclass(frozen=True)
class RunFolder(TrainingFolder):
    """`OUT/runs/<name>`: a training run of the DCGAN and its samples."""

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
    def label_files(self) -> LabelFiles:
        return LabelFiles(self.folder)


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

    def cached(self, fingerprint: str) -> Path:
        """The predictions of one evaluation set."""
        return self.cached_predictions / f"{fingerprint}.parquet"

    @property
    def detection_metrics(self) -> Path:
        return self.folder / "detection_metrics.parquet"


@dataclass(frozen=True)
class ReportFolder:
    """`OUT/report`, or the folder of a single run's page below it."""

    folder: Path

    @property
    def page(self) -> Path:
        return self.folder / "index.html"

    @property
    def document(self) -> Path:
        return self.folder / "report.json"

    def table(self, name: str) -> Path:
        return self.folder / f"{name}.parquet"

    def figure(self, name: str) -> Path:
        """A figure by its file name."""
        return self.folder / name

    def figures(self) -> list[Path]:
        """Every figure of a page, of any run."""
        return [path for pattern in REPORT_FIGURES for path in self.folder.glob(pattern)]

    def run(self, name: str) -> "ReportFolder":
        """The page of one of several runs."""
        return ReportFolder(self.folder / "runs" / name)


@dataclass(frozen=True)
class Workspace:
    """The paths of everything below OUT; nothing is read or created."""

    root: Path

    @property
    def synthetic(self) -> Path:
        return self.root / "synthetic"

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

    def runs(self) -> list[RunFolder]:
        """Every run that has a config.json, by name."""
        return [RunFolder(path.parent) for path in sorted(self.runs_folder.glob("*/config.json"))]

    def detectors(self) -> list[DetectorFolder]:
        """Every folder of a detector, by name."""
        return [DetectorFolder(path) for path in sorted(self.detectors_folder.glob("*")) if path.is_dir()]

    def view_files(self) -> dict[str, list[Path]]:
        """The existing files of every SQL view, by view."""
        runs = [RunFolder(path) for path in sorted(self.runs_folder.glob("*"))]
        detectors = [DetectorFolder(path) for path in sorted(self.detectors_folder.glob("*"))]
        labels = [self.shards.label_files, *(run.label_files for run in runs)]
        files = {
            "images": [self.shards.images],
            "unmatched": [self.shards.unmatched],
            "labels": [path for one in labels for path in (one.labels, one.probe_labels, one.pixels)],
            "labellers": [self.shards.label_files.labellers],
            "samples": [run.samples_table for run in runs],
            "steps": [run.steps for run in runs],
            "runs": [run.config for run in runs],
            **{name: [self.report.table(name)] for name in REPORT_TABLES},
            "predictions": [detector.predictions for detector in detectors],
            "detection_metrics": [detector.detection_metrics for detector in detectors],
        }
        return {view: [path for path in paths if path.exists()] for view, paths in files.items()}
