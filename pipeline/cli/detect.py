"""The command that trains and evaluates detectors of generated faces: `detect`."""

from pathlib import Path
from typing import Any

import click

from pipeline.cli import console
from pipeline.cli.judge import judge_images
from pipeline.cli.options import (
    BELOW_ONE,
    EPOCHS,
    FILE,
    FOLDER,
    MAX_BATCH,
    PERTURBATION_NAMES,
    POSITIVE,
    STEPS,
    NonEmptyPath,
    Number,
    device_option,
    drop_unset,
    feed_option,
    force_option,
    given_options,
    name_callback,
    precision_option,
    preset_seed_option,
    refuse_torchrun,
    threads_option,
    workers_option,
    workspace_option,
)
from pipeline.cli.shards import pack
from shards.workspace import Workspace

SETTINGS = (
    "preset",
    "steps",
    "fakes",
    "run",
    "group_by",
    "hold_out",
    "device",
    "threads",
)  # of DetectorsConfig; the others are of DetectorOptions

JUDGE_OPTIONS = {"workspace", "name", "judged", "judgements", "test_batchsize", "device", "workers", "threads"}


def perturbations_callback(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    """The perturbations, each once; `all` stands for every one."""
    return PERTURBATION_NAMES if "all" in values else tuple(dict.fromkeys(values))


@click.command()
@workspace_option()
@click.option("--data", "--datapath", type=FOLDER, help="Pack this folder first, like `fairface shards --data`.")
@click.option(
    "--model",
    "models",
    multiple=True,
    default=("xception",),
    help="xception, efficientnet, vit, univfd, core, f3net, spsl, srm, ucf, daw_fdd, dag_fdd, pg_fdd, vfm, gend, "
    "effort, npr, or all. Repeatable.  [default: xception]",
)
@click.option(
    "--backbone",
    metavar="NAME",
    help="Image encoder of vfm, gend and effort: dinov3, pe, clip, siglip2, metaclip2, dinov3-small, pe-tiny, or any "
    "name in timm (NAME.TAG) or open_clip (NAME/TAG).  [default: dinov3 for vfm, clip for gend and effort; pe-tiny "
    "with --preset sketch]",
)
@click.option(
    "--name",
    callback=name_callback,
    help="Name of the detector; --hold-out appends to it.  [default: the model's, with the backbone if one is chosen; "
    "with --import the file's]",
)
@click.option(
    "--preset",
    type=click.Choice(["auto", "benchmark", "sketch"]),
    default="auto",
    show_default=True,
    help="benchmark: the settings of AI-Face's benchmark; sketch: 64 pixels and a few minutes; "
    "auto: benchmark for real faces on a GPU, otherwise sketch.",
)
@click.option(
    "--fakes",
    type=click.Choice(["auto", "images", "samples"]),
    default="auto",
    show_default=True,
    help="images: fakes among the packed images; samples: a run's samples; "
    "auto: images if they contain both real faces and fakes, otherwise samples.",
)
@click.option("--run", callback=name_callback, help="Run whose samples serve as fakes.  [default: the newest]")
@click.option(
    "--group-by",
    metavar="ATTRIBUTE",
    help="Attribute whose classes daw_fdd and pg_fdd use as groups.  [default: intersection]",
)
@click.option(
    "--hold-out",
    metavar="NAME[,NAME]",
    multiple=True,
    help="Train without the fakes of this family or method, and evaluate on all test faces, as detector "
    "MODEL-without-NAME. Repeatable: one detector each. all: each family in turn, or each method if there is a single "
    "family; all-methods: each method in turn.",
)
@click.option("--lr", type=POSITIVE, help="Learning rate.  [default: 0.0005, or that of the model's paper]")
@click.option(
    "--train-batchsize",
    "--train_batchsize",
    "--batch-size",
    "batch_size",
    type=click.IntRange(1, MAX_BATCH),
    help="Images per step; pairs for ucf and pg_fdd.  [default: 128]",
)
@click.option(
    "--test-batchsize",
    "--test_batchsize",
    type=click.IntRange(1, MAX_BATCH),
    default=32,
    show_default=True,
    help="Images per forward pass in evaluation, and when the features of a frozen backbone are extracted.",
)
@click.option(
    "--epochs",
    type=click.IntRange(0, EPOCHS.max),
    help="Length in epochs; 0 evaluates the weights of --pretrained as they are.  [default: 10]",
)
@click.option("--steps", type=click.IntRange(0, STEPS.max), help="Length in steps, instead of --epochs.")
@click.option("--momentum", type=BELOW_ONE, help="Momentum of SGD, or beta1 of Adam and AdamW.  [default: 0.9]")
@click.option("--weight-decay", type=Number(0), help="Weight decay.  [default: 0.005, or that of the model's paper]")
@click.option("--lr-step", type=EPOCHS, help="Epochs between decays of the learning rate.  [default: 60]")
@click.option(
    "--lr-gamma",
    type=Number(0, 1, min_open=True),
    help="Factor of each decay of the learning rate.  [default: 0.9]",
)
@click.option(
    "--image-size",
    type=click.IntRange(64, 1024),
    help="Input size (side) in pixels.  [default: 256; 224 for vit and univfd; the backbone's for vfm, gend, effort]",
)
@click.option(
    "--pretrained",
    help="Pretrained weights: a timm or open_clip tag, or a checkpoint of the backbone or of a published detector.",
)
@click.option(
    "--from-scratch", is_flag=True, default=None, help="Start from random weights, the default for synthetic faces."
)
@click.option(
    "--postprocess",
    "perturbations",
    multiple=True,
    type=click.Choice(["all", *PERTURBATION_NAMES]),
    callback=perturbations_callback,
    help="Also evaluate on test faces with this perturbation. Repeatable.",
)
@preset_seed_option
@precision_option
@click.option("--compile/--no-compile", default=None, help="Use torch.compile.  [default: on a GPU]")
@feed_option
@workers_option
@device_option
@threads_option
@click.option(
    "--import",
    "csv",
    type=FILE,
    help="Import another detector's predictions from a CSV with the columns target and logit, and at least one "
    "attribute, such as gender.",
)
@click.option(
    "--judge",
    "judged",
    type=NonEmptyPath(path_type=Path),
    multiple=True,
    help="Classify this image, or all images below this folder, with the trained detector --name. Repeatable.",
)
@click.option(
    "--csv",
    "judgements",
    type=NonEmptyPath(path_type=Path, dir_okay=False, allow_dash=True),
    help="Write the results of --judge to this CSV instead of printing a table; - for standard output.",
)
@force_option
def detect(
    workspace: Workspace,
    data: Path | None,
    models: tuple[str, ...],
    name: str | None,
    test_batchsize: int,
    perturbations: tuple[str, ...],
    workers: int | None,
    csv: Path | None,
    judged: tuple[Path, ...],
    judgements: Path | None,
    force: bool,
    **options: Any,
) -> None:
    """Train detectors of generated faces and evaluate them by group.

    The utility and fairness metrics are those of AI-Face's benchmark. Rerunning the same command resumes an
    interrupted run. --import evaluates the predictions of any other detector; --judge classifies images with a trained
    one.
    """
    check_detect_options(csv, judged, judgements=judgements, **options)
    if csv:
        import_detector(workspace, csv, name=name, force=force)
        return
    from pipeline.data.decoder import DecoderConfig

    if judged:
        from pipeline.detection.judge import JudgeConfig

        judging = JudgeConfig(name, test_batchsize, options["device"], options["threads"], DecoderConfig(workers))
        judge_images(workspace, judged, judging, output=judgements)
        return
    from pipeline.detection import train_all
    from pipeline.detection.evaluate import EvaluationConfig

    config = train_all.DetectorsConfig(
        models=resolve_models(models, name=name, backbone=options["backbone"]),
        name=name,
        evaluation=EvaluationConfig(test_batchsize, perturbations),
        decoder=DecoderConfig(workers),
        force=force,
        progress=console.is_interactive(),
        **{setting: options.pop(setting) for setting in SETTINGS},
        overrides=drop_unset(options),
    )
    train_and_print(workspace, config, data=data)


def check_detect_options(
    csv: Path | None, judged: tuple[Path, ...], *, judgements: Path | None, **options: Any
) -> None:
    """Raise UsageError for options that contradict each other or would have no effect."""
    if csv:
        if given_options() - {"workspace", "name", "csv", "force"}:
            raise click.UsageError("--import can be combined only with --out, --name and --force")
        refuse_torchrun("--import")
    if judgements and not judged:
        raise click.UsageError("--csv needs --judge, whose results it writes")
    if judged:
        if given_options() - JUDGE_OPTIONS:
            raise click.UsageError(
                "--judge can be combined only with --out, --name, --csv, --test-batchsize, --device, --workers and "
                "--threads"
            )
        refuse_torchrun("--judge")
    if options["steps"] is not None and options["epochs"] is not None:
        raise click.UsageError("--steps and --epochs are alternatives: use one of them")
    if options["pretrained"] and options["from_scratch"]:
        raise click.UsageError("--pretrained and --from-scratch can't be combined")
    if options["hold_out"] and 0 in (options["steps"], options["epochs"]):
        raise click.UsageError("--hold-out leaves fakes out of training: it can't be combined with 0 steps or epochs")
    for name in ("backbone", "pretrained", "group_by"):
        if options[name] == "":
            raise click.UsageError(f"--{name.replace('_', '-')} is empty")


def resolve_models(names: tuple[str, ...], *, name: str | None, backbone: str | None) -> tuple[str, ...]:
    """Resolve aliases and `all` to the keys of DETECTORS.

    Raises UsageError if several would share the name `name`, or if none of them has a choice of backbones.
    """
    from models.detectors import DETECTORS
    from pipeline.detection import train_all

    models = train_all.resolve_models(names)
    if name and len(models) > 1:
        raise click.UsageError("--name needs a single --model: several would overwrite each other")
    choosing = [model for model, spec in DETECTORS.items() if spec.backbone]
    if backbone and not set(models) & set(choosing):
        raise click.UsageError(f"--backbone can only be used with --model {', '.join(choosing)}")
    return models


def import_detector(workspace: Workspace, csv: Path, *, name: str | None, force: bool) -> None:
    """Import predictions, and print their number and the metrics of their detector."""
    from pipeline.detection.import_predictions import import_predictions
    from reports.detector_summary import summarise

    imported = import_predictions(workspace, csv, name=name, force=force)
    console.print_imported_predictions(imported)
    console.print_metrics(summarise(workspace, imported.folder.name))


def train_and_print(workspace: Workspace, config: Any, *, data: Path | None) -> None:
    """Train and evaluate the detectors of a DetectorsConfig, and print each one's metrics when it is finished."""
    from pipeline.detection.train_all import SkippedDetector, train_detectors
    from shards import distributed

    with distributed.process_group():
        if data:
            pack(workspace, data)
        for result in train_detectors(workspace, config):
            if isinstance(result, SkippedDetector):
                console.warn(f"{result.model}: {result.reason}")
            elif distributed.rank() == 0:
                console.print_detector_summary(workspace, result)
