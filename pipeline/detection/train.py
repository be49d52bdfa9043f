"""Trains a detector of generated faces and evaluates it; rerunning the same command resumes an interrupted run."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import islice

import torch

from models.detectors import FrozenFeatureDetector, Labels
from pipeline.data.decoder import DecoderConfig
from pipeline.data.loader import FEEDS, FeedConfig, choose_feed
from pipeline.data.sampler import NaturalSampler, PairedSampler, RankSlice, iterate_batches
from pipeline.detection.dataset import FacePool, build_pool, build_sampler, iterate_labels
from pipeline.detection.defaults import SKETCH_STEPS, resolve_auto
from pipeline.detection.evaluate import EvaluationConfig, check_foreign, evaluate
from pipeline.detection.features import FeatureExtractor, iterate_features
from pipeline.detection.hold_out import without_generators
from pipeline.detection.network import check_frozen_weights, frozen_hash
from pipeline.detection.options import DETECTOR_EXECUTION_OPTIONS, DetectorOptions
from pipeline.detection.predict import InferenceConfig
from pipeline.detection.trainer import DetectorTrainer
from pipeline.threads import max_threads, using_threads
from pipeline.training import checkpoint, lifecycle
from pipeline.training.lifecycle import PreparedRun, Session, TrainingJob
from pipeline.training.loop import Batches, LoopConfig
from shards import distributed
from shards.documents import DetectorConfig, DetectorData, PredictionsDocument, read_document
from shards.errors import FairfaceError
from shards.workspace import DetectorFolder, Workspace

SAVE_EVERY_SECONDS = 300  # between two checkpoints
GPU_LOG_EVERY = 20  # steps between two rows of steps.parquet on a GPU; on a CPU each step has one


@dataclass(frozen=True)
class DetectConfig:
    """The options of a detector's training and evaluation."""

    options: DetectorOptions
    name: str
    preset: str = "benchmark"  # benchmark | sketch: where the options come from
    steps: int | None = None  # of the whole training; None: the options' epochs
    is_short: bool = False  # take at most SKETCH_STEPS where `steps` is None
    fakes: str = "auto"  # auto | images | samples
    run: str | None = None  # whose samples are the fakes; None: the newest, or the one that the training started with
    group_by: str | None = None  # attribute whose classes are the groups; None: `dataset.default_group_by`
    hold_out: tuple[str, ...] = ()  # families and methods, as in the images, whose fakes are not trained on
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    threads: int | None = None  # of torch on a CPU; None: as many as the existing detector had, or the fastest number
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    force: bool = False  # replace a detector of the same name
    progress: bool = True  # show progress bars

    @property
    def trains(self) -> bool:
        """Whether any steps are requested; a published detector may be evaluated without training."""
        return bool(self.options.epochs if self.steps is None else self.steps)


@dataclass(frozen=True)
class DetectResult:
    """A trained and evaluated detector."""

    config: DetectorConfig
    steps: int  # that were taken, perhaps more than requested now
    counts: dict[str, int]  # faces: train_real, train_fake, test_real, test_fake
    grouped_by: str  # where the faces' groups come from: annotated, labelled
    unchanged: bool  # whether it was already trained and evaluated
    left_out: list[str] = field(default_factory=list)  # runs whose samples could not be evaluated, and why


@dataclass(frozen=True)
class TrainingFaces:
    """The faces of a training run, and this rank's part of them."""

    pool: FacePool  # of all ranks
    share: FacePool  # of this rank
    sampler: NaturalSampler | PairedSampler
    rank_slice: RankSlice
    batch_size: int  # images of a step on this rank

    @classmethod
    def build(cls, pool: FacePool, options: DetectorOptions, *, trains: bool = True) -> "TrainingFaces":
        """Build the faces.

        Raises FairfaceError if the detector `trains` and they don't fill a batch, and if the ranks can't share a batch.
        """
        rank_slice = RankSlice(distributed.rank(), distributed.world_size())
        world_size, share = rank_slice.world_size, pool.rank_share(rank_slice)
        sampler = distributed.run_on_all_ranks(
            lambda: build_sampler(options, share, world_size=world_size, trains=trains)
        )
        sampler.images_per_epoch = min(distributed.all_gather(sampler.images_per_epoch))  # the same on every rank
        return cls(pool, share, sampler, rank_slice, options.images_per_step // world_size)

    @property
    def steps_per_epoch(self) -> int:
        return self.sampler.images_per_epoch // self.batch_size


def train_detector(workspace: Workspace, config: DetectConfig) -> DetectResult:
    """Train, or resume, the detector that a config names, and evaluate it.

    Raises FairfaceError for unsuitable faces, for an existing detector with other options or faces, and for a loss that
    is not finite; WeightsUnavailable, before anything is replaced, if pretrained weights are not available;
    TrainingInterrupted on SIGTERM or SIGINT, after saving a checkpoint.
    """
    folder = workspace.detector(config.name)
    with distributed.process_group(), ExitStack() as locks:
        device = lifecycle.select_device(config.device)
        pool = build_faces(workspace, folder, config=config, locks=locks)
        faces = TrainingFaces.build(pool, config.options, trains=config.trains)
        job = DetectorJob(folder, config, faces=faces, device=device)
        with lifecycle.locked(folder):
            prepared = lifecycle.prepare(job)
            trained = prepared.config if prepared.is_finished else lifecycle.train_to_end(job, prepared)
            recorded = min(trained.threads.count, max_threads()) if trained.threads else None
            with using_threads(config.threads or recorded):
                evaluation = evaluate(
                    workspace,
                    folder,
                    config=trained,
                    faces=faces.pool,
                    perturbations=config.evaluation.perturbations,
                    inference=job.inference,
                )
        return DetectResult(
            config=trained,
            steps=checkpoint.checkpoint_step(checkpoint.list_checkpoints(folder.checkpoints)[-1]),
            counts=faces.pool.counts(),
            grouped_by=faces.pool.grouped_by,
            unchanged=prepared.is_finished and not evaluation.is_changed,
            left_out=evaluation.left_out,
        )


def build_faces(workspace: Workspace, folder: DetectorFolder, *, config: DetectConfig, locks: ExitStack) -> FacePool:
    """Build the faces that a config names, locked until `locks` closes.

    A resumed run keeps its samples, its groups and its held-out generators.
    """
    fakes, run, group_by, hold_out = config.fakes, config.run, config.group_by, config.hold_out
    existing = None if config.force else read_document(folder.config, DetectorConfig)
    if existing:
        group_by = group_by or existing.data.attribute
        hold_out = hold_out or tuple(existing.data.held_out)
        if fakes == "auto" and not run:
            run = existing.data.run
    fakes = "samples" if run and fakes == "auto" else fakes
    pool = build_pool(workspace, fakes, run=run, group_by=group_by, locks=locks, trains=config.trains)
    return without_generators(pool, hold_out)


class DetectorJob(TrainingJob[DetectorConfig]):
    """A training run of a detector."""

    document = DetectorConfig
    name_option = "--name"
    execution_options = DETECTOR_EXECUTION_OPTIONS

    def __init__(self, folder: DetectorFolder, config: DetectConfig, *, faces: TrainingFaces, device: torch.device):
        steps = config.options.epochs * faces.steps_per_epoch if config.steps is None else config.steps
        if config.is_short and config.steps is None:
            steps = min(steps, SKETCH_STEPS)
        super().__init__(folder, steps=steps, force=config.force, threads=config.threads)
        self.config, self.faces, self.device = config, faces, device
        self.predictions = folder.predictions_document
        self.inference = InferenceConfig(
            device,
            decoder=replace(config.decoder, pre_resize=faces.pool.image_size),
            batch_size=config.evaluation.batch_size,
            progress=config.progress and faces.rank_slice.rank == 0,
        )

    def check(self) -> None:
        """Raise FairfaceError for foreign files, for imported predictions, and if a loss over groups has no groups."""
        check_foreign(self.folder)
        is_trained_here = self.force or self.folder.config.exists()
        predictions = None if is_trained_here else read_document(self.predictions, PredictionsDocument)
        if predictions and predictions.imported is not None:
            raise FairfaceError(
                f"{self.folder.folder} has predictions that were imported: choose another --name, or replace them with "
                "--force"
            )
        spec = self.config.options.spec
        if spec.uses_groups and self.config.trains and not sum(self.faces.pool.group_counts().values()):
            raise FairfaceError(
                f"{spec.title} is trained on groups, and no face has one of {self.faces.pool.attribute.name}: run "
                "`fairface label`, pack annotated faces, or choose another --group-by"
            )

    def create(self) -> DetectorConfig:
        """Build the config.json of a new detector."""
        options, pool = self.config.options, self.faces.pool
        return DetectorConfig(
            name=self.folder.name,
            preset=self.config.preset,
            requested_options=asdict(options),
            options=asdict(resolve_auto(options, shards=pool.shards, device=self.device)),
            data=DetectorData(
                manifest=pool.manifest,
                run=pool.run,
                grouped_by=pool.grouped_by,
                attribute=pool.attribute.name,
                held_out=list(pool.held_out),
                groups_hash=pool.groups_hash() if options.spec.uses_groups else None,
                view=pool.view(),
                **pool.counts(),
            ),
            group_counts=pool.group_counts(),
            steps_per_epoch=self.faces.steps_per_epoch,
            **lifecycle.provenance(self.device),
        )

    def resume(self, config: DetectorConfig) -> DetectorConfig:
        """Build the config.json with which an existing detector continues, perhaps with another feed."""
        self._check_resumable(config)
        options = self.config.options
        feed = options.feed
        if feed == "auto":
            feed = choose_feed(self.faces.pool.shards, options.image_size, device=self.device)
        return replace(config, options=(config.options or {}) | {"feed": feed})

    def announce(self, config: DetectorConfig) -> None:
        """Print the detector's name, faces, length and resolved options."""
        options, data = self.load_options(DetectorOptions, config.options), config.data
        fakes = "fakes without " + " and ".join(data.held_out) if data.held_out else "fakes"
        source = "stored features" if options.spec.frozen_features else f"{options.feed} feed"
        print(
            f"{config.name}: {options.spec.title}, {data.train_real:,} real faces and {data.train_fake:,} {fakes}, "
            f"{self.steps:,} steps of {options.images_per_step} at {options.image_size} pixels on {config.device}; "
            f"{options.precision}, {'compiled' if options.compile else 'eager'}, {source}",
            flush=True,
        )

    def start(self, prepared: PreparedRun[DetectorConfig]) -> Session[DetectorConfig]:
        """Load the newest checkpoint, if any, and prepare the remaining batches."""
        config = prepared.config
        options = self.load_options(DetectorOptions, config.options)
        trainer = DetectorTrainer(
            options,
            list(config.group_counts.values()),
            device=self.device,
            steps_per_epoch=config.steps_per_epoch,
            rank_slice=self.faces.rank_slice,
            resuming=bool(prepared.checkpoints),
        )
        check_frozen_weights(trainer.net, config)
        first_step, rows = lifecycle.restore(trainer, self.folder, prepared.checkpoints)
        return Session(
            config=replace(
                config,
                parameters=sum(weight.numel() for weight in trainer.net.parameters()),
                frozen=config.frozen or frozen_hash(trainer.net),
            ),
            trainer=trainer,
            batches=self._batches(trainer, first_step),
            first_step=first_step,
            rows=rows,
            checkpoint_bytes=trainer.checkpoint_bytes,
            loop=LoopConfig(
                steps_per_epoch=config.steps_per_epoch,
                save_every_seconds=SAVE_EVERY_SECONDS,
                log_every=GPU_LOG_EVERY if self.device.type == "cuda" else 1,
                keep=1,
                progress=self.inference.progress,
            ),
        )

    def complete(self, session: Session[DetectorConfig]) -> None:
        """With a frozen backbone, extract the features of the faces that the remaining steps need, once for all epochs.

        Raises TrainingInterrupted after SIGTERM or SIGINT; the features up to then are stored.
        """
        trainer, faces, first = session.trainer, self.faces, session.first_step
        if not isinstance(trainer, DetectorTrainer) or not isinstance(trainer.net, FrozenFeatureDetector):
            return
        is_needed = torch.zeros(faces.share.shards.images, dtype=torch.bool)  # a sketch needs few of a million faces
        for batch in islice(iterate_batches(faces.sampler, faces.batch_size, first_step=first), self.steps - first):
            is_needed[batch] = True
        indices = is_needed.nonzero()[:, 0]
        extractor = FeatureExtractor(trainer.net, session.config.frozen or "", trainer.options, self.inference)
        with using_threads(self.threads):
            features = extractor.load(faces.share.sources, indices, title="training faces").to(self.device)
        if self.device.type == "cpu" and not session.config.threads:
            self.threads = self.threads or extractor.threads  # the fastest for the backbone, which evaluation uses too
        batches = iterate_features(features, indices, faces.sampler, batch_size=faces.batch_size, first_step=first)
        session.batches = zip(batches, self._labels(first), strict=False)

    def _batches(self, trainer: DetectorTrainer, first_step: int) -> Batches:
        """Yield the images and labels of `first_step` and every later step; none if features replace the images."""
        faces, options = self.faces, trainer.options
        if first_step >= self.steps or options.spec.frozen_features:
            return iter(())
        feed = FeedConfig(
            image_size=options.image_size,
            batch_size=faces.batch_size,
            device=self.device,
            decoder=self.inference.decoder,
            progress=self.inference.progress,
        )
        images = FEEDS[options.feed](faces.share.shards, faces.sampler, feed)(first_step)
        return zip(images, self._labels(first_step), strict=False)

    def _labels(self, first_step: int) -> Iterator[Labels]:
        """Yield the labels of the faces of `first_step` and of every later step."""
        faces = self.faces
        return iterate_labels(
            faces.share, faces.sampler, batch_size=faces.batch_size, first_step=first_step, device=self.device
        )

    def _check_resumable(self, config: DetectorConfig) -> None:
        """Raise FairfaceError if the detector has other options, faces or groups."""
        folder, pool, options = self.folder.folder, self.faces.pool, self.config.options
        if config.data.manifest != pool.manifest:
            samples = f", including the samples of run {config.data.run}" if config.data.run else ""
            raise FairfaceError(f"{folder} was trained on other faces than these{samples}: {self.remedy}")
        if config.data.held_out != list(pool.held_out):
            held_out = f"without {' and '.join(config.data.held_out)}" if config.data.held_out else "on all fakes"
            raise FairfaceError(f"{folder} was trained {held_out}: {self.remedy}")
        if options.spec.uses_groups and config.data.groups_hash != pool.groups_hash():
            raise FairfaceError(f"{folder} was trained on faces with other labels: {self.remedy}")
        self.check_same_options(config, options, ignored=("epochs",))
