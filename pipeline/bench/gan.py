"""Benchmark of training recipes: how well each keeps the groups after equal training times, over several seeds."""

import contextlib
import io
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median

import torch

from pipeline.bench.context import BenchContext
from pipeline.bench.gan_metrics import measure_run
from pipeline.bench.measure import ROUNDS, Row, measure_rate
from pipeline.data.shard_set import ShardSet
from pipeline.gan.defaults import resolve_auto
from pipeline.gan.options import PRESETS, GanOptions
from pipeline.gan.sample import SampleConfig, sample
from pipeline.gan.train import TrainConfig, train
from pipeline.gan.trainer import GanTrainer
from pipeline.labelling.label import label
from pipeline.labelling.labeller_choice import LabelConfig
from pipeline.packing import pack_images
from shards.concurrency import available_cpus
from shards.errors import FairfaceError
from shards.workspace import Workspace

SAMPLES = 2000  # of each trial
RATE_STEPS = 40  # of each round in which a recipe's speed is measured
WIDTHS = {"width_g": 24, "width_d": 16, "batch_size": 16}  # of the small presets
PUBLISHED = GanOptions(**WIDTHS)  # type: ignore[arg-type]
RECIPES = {  # the first of those that are trained is the baseline
    "published": PUBLISHED,
    "published loss, r1": replace(PUBLISHED, regularizer="r1", lr=4e-4),
    "relativistic, BatchNorm": replace(PUBLISHED, loss="relativistic", lr=4e-4),
    "hinge, spectral": replace(PUBLISHED, loss="hinge", regularizer="spectral", lr_d=8e-4),
    "sketch": PRESETS["sketch"],
    "small-faces": PRESETS["small-faces"],
}


@dataclass(frozen=True)
class Trial:
    """One training run of a recipe."""

    recipe: str
    options: GanOptions
    steps: int
    device: str

    @property
    def run(self) -> str:
        """The run's name."""
        return f"{self.recipe.replace(', ', '-')}-{self.options.seed}".lower()


def bench_gan(context: BenchContext) -> Iterator[Row]:
    """Train every recipe with several seeds for equal times on synthetic or annotated faces, and measure the samples.

    Trials run in parallel, each with one thread. The number of steps of a trial is the one that fits into its seconds
    at the rate of the training step alone.
    Raises FairfaceError for an unknown recipe.
    """
    if unknown := set(context.trials.recipes) - set(RECIPES):
        raise FairfaceError(f"there is no recipe {', '.join(sorted(unknown))}: choose from {'; '.join(RECIPES)}")
    workspace, device = Workspace(context.scratch("gan")), context.device
    data = context.trials.annotated_faces
    with contextlib.redirect_stdout(io.StringIO()):
        pack_images(workspace, data)
    shards = ShardSet.open(workspace.shards)
    recipes = {
        name: resolve_auto(replace(options, cuda_graphs=True), 1, shards=shards, device=device)[0]
        for name, options in RECIPES.items()
        if name in context.trials.recipes or not context.trials.recipes
    }
    rates = step_rates(recipes, device)
    trials = [
        Trial(
            name,
            replace(options, seed=seed),
            max(int(context.trials.seconds * rates[name] / options.batch_size), 1),
            str(device),
        )
        for seed in range(context.trials.seeds)
        for name, options in recipes.items()
    ]
    run_trial(workspace, replace(trials[0], recipe="first", steps=1))  # labels the training images, once for all trials
    with ProcessPoolExecutor(available_cpus(), mp_context=multiprocessing.get_context("spawn")) as processes:
        results = list(processes.map(run_in_copy, [workspace.root] * len(trials), trials))
    metrics_by_recipe: dict[str, list[Mapping[str, float]]] = {}
    for trial, metrics in zip(trials, results, strict=True):
        metrics_by_recipe.setdefault(trial.recipe, []).append(metrics)
    title = f"{'annotated' if data else 'synthetic'} faces, {context.trials.seconds:,.0f} s"
    yield from recipe_rows(title, metrics_by_recipe, rates={name: rates[name] for name in metrics_by_recipe})


def step_rates(recipes: Mapping[str, GanOptions], device: torch.device) -> dict[str, float]:
    """The images per second of each recipe's step alone: medians over rounds in which the recipes take turns."""
    trainers = {name: GanTrainer(options, device) for name, options in recipes.items()}
    rates: dict[str, list[float]] = {name: [] for name in recipes}
    for start in range(0, (ROUNDS + 1) * RATE_STEPS, RATE_STEPS):
        for name, trainer in trainers.items():
            size = recipes[name].image_size
            images = torch.randint(0, 256, (trainer.batch_size, size, size, 3), dtype=torch.uint8, device=device)

            def work(trainer: GanTrainer = trainer, images: torch.Tensor = images, start: int = start) -> int:
                for step in range(start, start + RATE_STEPS):
                    trainer.step(step, images)
                return RATE_STEPS * len(images)

            rates[name].append(measure_rate(work, device))
    return {name: median(rounds[1:]) for name, rounds in rates.items()}


def run_in_copy(root: Path, trial: Trial) -> dict[str, float]:
    """Run a trial in a copy of the workspace that belongs to this process, because labelling locks the shards."""
    workspace = Workspace(root / f"process-{os.getpid()}")
    if not workspace.root.exists():
        shutil.copytree(root / "shards", workspace.root / "shards")
    return run_trial(workspace, trial)


def run_trial(workspace: Workspace, trial: Trial) -> dict[str, float]:
    """Train, sample and label the run of a trial, and return its metrics."""
    name, device = trial.run, trial.device
    with contextlib.redirect_stdout(io.StringIO()):
        config = TrainConfig(trial.options, "sketch", trial.steps, run=name, device=device, threads=1, progress=False)
        train(workspace, config)
        sample(workspace, SampleConfig(run=name, count=SAMPLES, device=device, threads=1, progress=False))
        label(workspace, LabelConfig(run=name, device=device, threads=1, progress=False))
    return measure_run(workspace, name)


def recipe_rows(
    title: str, metrics_by_recipe: Mapping[str, Sequence[Mapping[str, float]]], *, rates: Mapping[str, float]
) -> Iterator[Row]:
    """Yield two rows for each recipe, with means over the seeds.

    The first has the mean total variation over the attributes, with all metrics of whole runs in its note; the second
    has the mean coverage of the groups, with the coverage and recall of each group in its note.
    """

    def total_variation(trials: Sequence[Mapping[str, float]]) -> float:
        return mean(mean(value for name, value in trial.items() if name.startswith("tv ")) for trial in trials)

    first, *_ = metrics_by_recipe
    reference = total_variation(metrics_by_recipe[first])
    reference_coverage = group_scores("coverage", metrics_by_recipe[first])
    for name, trials in metrics_by_recipe.items():
        value = total_variation(trials)
        details = [
            format_spread(metric, [trial[metric] for trial in trials])
            for metric in trials[0]
            if not metric.startswith(("coverage of ", "recall of "))
        ]
        yield Row(
            "gan",
            f"{title}: {name}: total variation, vs {first}",
            unit="permille",
            value=1000 * value,
            baseline=1000 * reference,
            ratio=reference / value,
            note=f"{len(trials)} seeds, {rates[name]:,.0f} img/s; {'; '.join(details)}",
        )
        coverage, recall = group_scores("coverage", trials), group_scores("recall", trials)
        if coverage:
            value, baseline = mean(coverage.values()), mean(reference_coverage.values())
            groups = [f"{group} {coverage[group]:.2f} and {recall[group]:.2f}" for group in coverage]
            yield Row(
                "gan",
                f"{title}: {name}: mean coverage of the groups, vs {first}",
                unit="permille",
                value=1000 * value,
                baseline=1000 * baseline,
                ratio=value / baseline if baseline else None,
                note=f"coverage and recall relative to training images: {'; '.join(groups)}",
            )


def group_scores(score: str, trials: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean score of each group that has a score in every trial."""
    prefix = f"{score} of "
    names = [name for name in trials[0] if name.startswith(prefix) and all(name in trial for trial in trials)]
    return {name.removeprefix(prefix): mean(trial[name] for trial in trials) for name in names}


def format_spread(name: str, values: Sequence[float]) -> str:
    """Return a metric's mean over the seeds, with its range, as text."""
    return f"{name} {mean(values):.3f} ({min(values):.3f}-{max(values):.3f})"
