"""Commands of the generator: `train` and `sample`."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from pipeline.cli import console
from pipeline.cli.options import (
    BELOW_ONE,
    EPOCHS,
    FILE,
    FOLDER,
    IMAGES,
    MAX_BATCH,
    POSITIVE,
    STEPS,
    Number,
    balance_callback,
    device_option,
    drop_unset,
    feed_option,
    force_option,
    given_options,
    integer_callback,
    name_callback,
    precision_option,
    preset_seed_option,
    refuse_torchrun,
    run_option,
    seed_option,
    threads_option,
    workers_option,
    workspace_option,
)
from pipeline.cli.shards import pack
from shards.workspace import Workspace

LOSS_NAMES = ("dcgan", "relativistic", "hinge")
REGULARIZERS = ("none", "r1", "r1r2", "spectral")
SETTINGS = (  # options that are fields of TrainConfig; the others are fields of GanOptions
    "run",
    "steps",
    "epochs",
    "device",
    "threads",
    "sample_every",
    "save_every_epoch",
    "keep",
    "force",
    "other_data",
)


@click.command()
@workspace_option("--out-dir")
@click.option("--data", "--data-root", type=FOLDER, help="Pack this folder first, like `fairface shards --data`.")
@click.option(
    "--run",
    callback=name_callback,
    help="Name of the run.  [default: derived from the options, so that the same command resumes]",
)
@click.option(
    "--preset",
    type=click.Choice(["auto", "faces", "small-faces", "sketch", "faces-2016"]),
    default="auto",
    show_default=True,
    help="faces: for real images and a GPU; small-faces: for real images on a laptop; sketch: for synthetic images; "
    "faces-2016: the DCGAN as published; auto: sketch for synthetic images, otherwise faces on a GPU, or small-faces.",
)
@click.option(
    "--image-size",
    type=click.Choice(["32", "64", "128"]),
    callback=integer_callback,
    help="Image size (side) in pixels.  [default: 64]",
)
@click.option("--latent-dim", type=click.IntRange(1, 2**16), help="Dimension of the latent vectors.  [default: 128]")
@click.option(
    "--width-g",
    type=click.IntRange(1, 1024),
    help="Base channels of the generator.  [default: 64; sketch, small-faces: 24]",
)
@click.option(
    "--width-d",
    type=click.IntRange(1, 1024),
    help="Base channels of the discriminator.  [default: 64; sketch, small-faces: 16]",
)
@click.option(
    "--batch-size", type=click.IntRange(2, MAX_BATCH), help="Images per step.  [default: 128; sketch, small-faces: 16]"
)
@click.option("--steps", type=STEPS, help="Length in steps; a larger number continues a finished run.")
@click.option(
    "--epochs",
    "--num-epochs",
    type=EPOCHS,
    help="Length in epochs, instead of --steps.  [default: 10, but at least 5000 steps; sketch: 3000 and "
    "small-faces: 6000 steps]",
)
@click.option(
    "--loss",
    type=click.Choice([*LOSS_NAMES]),
    help="Adversarial loss.  [default: dcgan; sketch, small-faces: relativistic]",
)
@click.option(
    "--regularizer",
    type=click.Choice([*REGULARIZERS]),
    help="Regularisation of the discriminator. r1: gradient penalty on real images; r1r2: on real and generated "
    "images; spectral: spectral normalisation. All but none remove its BatchNorm.  [default: none; sketch, "
    "small-faces: r1]",
)
@click.option(
    "--gamma", type=POSITIVE, help="Weight of the gradient penalty of r1 and r1r2.  [default: 1; small-faces: 0.1]"
)
@click.option(
    "--penalty-every", type=STEPS, help="Number of steps from one gradient penalty to the next.  [default: 8]"
)
@click.option(
    "--lr",
    type=POSITIVE,
    help="Learning rate of Adam for both networks.  [default: 2e-4; sketch: 8e-4; small-faces: 4e-4]",
)
@click.option("--lr-g", type=POSITIVE, help="Learning rate of the generator.  [default: --lr]")
@click.option("--lr-d", type=POSITIVE, help="Learning rate of the discriminator.  [default: --lr]")
@click.option("--beta1", type=BELOW_ONE, help="beta1 of Adam.  [default: 0.5]")
@click.option("--beta2", type=BELOW_ONE, help="beta2 of Adam.  [default: 0.999]")
@click.option("--ema", type=BELOW_ONE, help="Decay per step of the generator's moving average.  [default: 0.995]")
@click.option("--ema-half-life", type=POSITIVE, help="Half-life of that average in images, instead of --ema.")
@click.option(
    "--balance",
    callback=balance_callback,
    metavar="natural|uniform|FILE",
    help="natural: groups as frequent as in the data; uniform: all equally often; FILE: in the shares of a CSV with "
    "the columns group,share.  [default: natural]",
)
@click.option(
    "--balance-by",
    metavar="LABEL",
    help="The label that --balance refers to: an attribute, family, subset or target. Images without it are left out.  "
    "[default: intersection]",
)
@click.option(
    "--conditional",
    metavar="LABEL",
    help="Condition both networks on this label, one that --balance-by accepts; images without it are left out.",
)
@click.option("--flip/--no-flip", default=None, help="Mirror half of the images.  [default: flip]")
@click.option(
    "--diff-augment/--no-diff-augment",
    default=None,
    help="Show the discriminator all images with random changes of colour and position.  [default: no-diff-augment]",
)
@precision_option
@click.option(
    "--compile/--no-compile", default=None, help="Use torch.compile.  [default: on a GPU, and for long runs on a CPU]"
)
@feed_option
@click.option("--sample-every", type=STEPS, default=500, show_default=True, help="Steps between sample grids.")
@click.option("--save-every-epoch", type=EPOCHS, help="Epochs between checkpoints.  [default: every 30 seconds]")
@click.option(
    "--keep", type=click.IntRange(1, 10**4), default=3, show_default=True, help="Number of checkpoints to keep."
)
@preset_seed_option
@workers_option
@device_option
@threads_option
@click.option(
    "--cuda-graphs/--no-cuda-graphs",
    default=None,
    help="Replay each step as one CUDA graph, on a single GPU.  [default: cuda-graphs]",
)
@click.option(
    "--hw-decoder-load",
    type=Number(0, 1),
    help="Share of the JPEGs that a GPU's hardware decoder takes.  [default: 0.1]",
)
@click.option("--other-data", is_flag=True, help="Continue a run after the images in the shards have changed.")
@click.option("--resume", is_flag=True, help="Resume --run, or the newest run, with the options it was started with.")
@force_option
def train(
    workspace: Workspace,
    data: Path | None,
    preset: str,
    resume: bool,
    workers: int | None,
    hw_decoder_load: float | None,
    **options: Any,
) -> None:
    """Train the DCGAN on the shards.

    Rerunning the same command resumes an interrupted run.
    """
    check_train_options(preset=preset, resume=resume, **options)
    settings = {name: options.pop(name) for name in SETTINGS}
    from pipeline.data.decoder import DecoderConfig
    from pipeline.gan.configure import build_train_config
    from pipeline.gan.train import train as train_gan
    from shards import distributed

    settings["decoder"] = DecoderConfig(**drop_unset({"workers": workers, "hw_decoder_load": hw_decoder_load}))
    settings["progress"] = console.is_interactive()
    with distributed.process_group():
        if data:
            pack(workspace, data)
        config = distributed.run_on_rank0_first(
            lambda: build_train_config(workspace, drop_unset(options), preset=preset, resume=resume, **settings)
        )
        result = train_gan(workspace, config)
    console.print_train_summary(workspace, result)


def check_train_options(*, preset: str, resume: bool, **options: Any) -> None:
    """Raise UsageError for options that contradict each other or would have no effect."""
    if options["steps"] and options["epochs"]:
        raise click.UsageError("--steps and --epochs are alternatives: use one of them")
    if resume and (options["force"] or preset != "auto"):
        raise click.UsageError("--resume continues an existing run: it can't be combined with --force or --preset")
    if options["other_data"] and (options["force"] or not (resume or options["run"])):
        raise click.UsageError(
            "--other-data continues an existing run: name it with --run, or use --resume for the newest"
        )
    if options["other_data"] and options["epochs"]:
        raise click.UsageError(
            "--other-data needs --steps instead of --epochs: the two sets of images have epochs of different lengths"
        )
    if options["ema"] is not None and options["ema_half_life"]:
        raise click.UsageError("--ema and --ema-half-life are alternatives: use one of them")
    if options["lr"] and options["lr_g"] and options["lr_d"]:
        raise click.UsageError("--lr has no effect next to --lr-g and --lr-d: use one or two of them")
    if options["balance_by"] and options["balance"] in (None, "natural"):
        raise click.UsageError("--balance-by needs --balance uniform or a file of shares")


@click.command()
@workspace_option()
@run_option
@click.option(
    "--checkpoint",
    type=FILE,
    help="Checkpoint to sample from, instead of the run's newest; with --run, the samples are stored under that run.",
)
@click.option(
    "--from",
    "source",
    metavar="PATH|MODULE:FUNCTION",
    help="Import samples from another program: a folder, a tar, a zip, an .npz of uint8 images, a TorchScript "
    "generator (.pt, .ts), or a Python function of (count, seed). Without --run, the run is named after the source.",
)
@click.option(
    "--num-samples",
    "count",
    type=IMAGES,
    help="Number of samples.  [default: 2000, or all images of a folder or archive]",
)
@click.option(
    "--size",
    type=click.IntRange(16, 1024),
    help="With --from: side, in pixels, to crop and resize images to.  [default: that of the run's existing "
    "samples, else that of the training images' labels, else 64]",
)
@click.option(
    "--as-is", is_flag=True, help="With --from: neither crop nor resize; all images must be squares of one size."
)
@click.option(
    "--batch-size",
    type=click.IntRange(1, MAX_BATCH),
    help="Samples generated at a time, in blocks of 64; with --from, images per call of the generator.  "
    "[default: one block per thread; with --from: 64]",
)
@click.option(
    "--png-dir", "--out-dir", type=FOLDER, help="Also write PNG files to this folder: sample_00000.png and so on."
)
@click.option(
    "--weights",
    type=click.Choice(["ema", "g"]),
    default="ema",
    show_default=True,
    help="ema: the generator's moving average; g: the generator itself.",
)
@click.option(
    "--ema-half-life",
    type=POSITIVE,
    help="Half-life of the moving average, in images: from the one used in training to four times as many.  [default: "
    "the one used in training]",
)
@click.option(
    "--group",
    "groups",
    multiple=True,
    help="Generate only this group, with a conditional generator. Repeatable.  "
    "[default: all groups, in their training shares]",
)
@click.option(
    "--truncation",
    type=POSITIVE,
    help="Truncate the latents' normal distribution at this absolute value: a smaller one gives more typical and less "
    "varied samples.  [default: not truncated]",
)
@seed_option
@device_option
@threads_option
@force_option
def sample(workspace: Workspace, source: str | None, size: int | None, as_is: bool, **options: Any) -> None:
    """Generate samples, or import those of another program.

    Writes tar shards and samples.parquet into the folder of the run and, with --png-dir, PNG files.
    """
    check_sample_options(source, size=size, as_is=as_is, **options)
    options["progress"] = console.is_interactive()
    if source is not None:
        from pipeline.gan.import_samples import ImportConfig, import_samples

        names = {item.name for item in fields(ImportConfig)}
        own = {name: value for name, value in options.items() if name in names}
        console.print_sample_summary(
            import_samples(workspace, ImportConfig(source=source, size=size, as_is=as_is, **own))
        )
        return
    from pipeline.gan.sample import SampleConfig
    from pipeline.gan.sample import sample as generate_samples

    console.print_sample_summary(generate_samples(workspace, SampleConfig(**drop_unset(options))))


def check_sample_options(source: str | None, *, size: int | None, as_is: bool, **options: Any) -> None:
    """Raise UsageError for options that contradict each other or would have no effect."""
    if source is None and (size or as_is):
        raise click.UsageError(f"--{'size' if size else 'as-is'} needs --from: a trained generator has a fixed size")
    if options["ema_half_life"] and options["weights"] != "ema":
        raise click.UsageError("--ema-half-life applies to the moving average: it needs --weights ema")
    if size and as_is:
        raise click.UsageError("--size and --as-is are alternatives: use one of them")
    if source is not None:
        of_generators = {"checkpoint", "weights", "ema_half_life", "groups", "truncation", "threads"}
        if unsupported := given_options() & of_generators:
            name = {"groups": "group"}.get(min(unsupported), min(unsupported)).replace("_", "-")
            raise click.UsageError(f"--{name} applies to generators of `fairface train`, not to --from")
        refuse_torchrun("--from")
