"""The command line: arguments and messages, no work of its own. Heavy libraries load inside the commands."""

import errno
import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click

from shards.errors import FairfaceError, WeightsUnavailable

# Threads of torch that wait for each other spin; beside another busy process on the same cores that made a step 40
# times slower. A short spin costs nothing alone and keeps a fifth of the speed there. Read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

OUT = click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="outputs",
    show_default=True,
    help="Folder of everything that is written.",
)
RUN = click.option("--run", help="Name of the run; the newest when left out.")
FORCE = click.option("--force", is_flag=True, help="Do it again, and replace what is there.")
DEVICE = click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N or auto.")
ANY_SEED = click.IntRange(0, 2**63 - 1)
SEED = click.option("--seed", type=ANY_SEED, default=0, show_default=True, help="Of everything random.")
WORKERS = click.option(
    "--workers", "--num-workers", type=click.IntRange(1, 1024), help="Processes or threads; one a core when left out."
)
FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
LABEL_COLUMN = click.Choice(
    ["gender", "age", "skin_tone", "skin_group", "intersection", "race", "target", "family", "subset"]
)
POSTPROCESSED = (  # as pipeline/postprocess.py has them, which is not loaded for a --help
    "gaussian_blur",
    "jpeg_compression",
    "hue_saturation_value",
    "brightness_contrast",
    "random_crop",
    "rotation",
)
SHARE = "such as {}; classes left out get none."


class Group(click.Group):
    """Turns what a person can mend into one line and an exit code; anything else is our fault and shows itself."""

    def invoke(self, context: click.Context) -> object:
        before = signal.signal(signal.SIGTERM, terminated)  # as SLURM sends at a time limit
        try:
            return super().invoke(context)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except (KeyboardInterrupt, Terminated) as stop:
            click.echo("Stopped: what was finished is kept, and the same command goes on.", err=True)
            context.exit(75 if isinstance(stop, Terminated) else 130)  # 75: EX_TEMPFAIL of sysexits.h, "try again"
        except Exception as error:
            if os.environ.get("FAIRFACE_DEBUG") or not (message := message_of(error)):
                raise
            click.echo(f"Error: {message}", err=True)
            context.exit(getattr(error, "exit_code", 1))
        finally:
            signal.signal(signal.SIGTERM, before)


class Terminated(BaseException):
    """SIGTERM: as little as Ctrl-C something that a library's `except Exception` may swallow."""


def terminated(*_) -> None:
    raise Terminated


def message_of(error: Exception) -> str | None:
    """What a user can do something about, in a line; None for an error that is ours."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full: free some space or choose another --out; what was finished is kept"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename} can't be used: {error.strerror}"
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
        return "that does not fit into memory: a smaller network, batch or image size would"
    return " ".join(str(error).split()) if isinstance(error, FairfaceError) else None


def option_type(attribute: str) -> Callable:
    """A callback that reads shares such as `female=0.7,male=0.3`."""

    def read(_context: click.Context, _parameter: click.Parameter, value: str | None) -> dict | None:
        from shards.synthetic.dataset import parse_shares

        try:
            return parse_shares(value, attribute) if value else None
        except FairfaceError as error:
            raise click.BadParameter(str(error)) from error

    return read


def pairs(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> tuple:
    """Reads NAME=NAME, repeated."""
    split = tuple(tuple(part.strip() for part in value.split("=")) for value in values)
    if bad := [value for value, pair in zip(values, split, strict=True) if len(pair) != 2 or not all(pair)]:
        raise click.BadParameter(f"{bad[0]!r} is not NAME=NAME")
    if bad := [name for pair in split for name in pair if "/" in name or not name.strip("_-")]:
        raise click.BadParameter(f"{bad[0]!r} is not the name of one folder")
    return split


def target_shares(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | dict | None:
    """`natural`, `uniform`, or what a CSV of groups and shares says."""
    if value in (None, "natural", "uniform"):
        return value
    from pipeline.data.sampler import read_shares

    try:
        return read_shares(Path(value))
    except FairfaceError as error:
        raise click.BadParameter(str(error)) from error


class Bytes(click.ParamType):
    """A number of bytes, with or without a unit."""

    name = "size"

    def convert(self, value: str | int, parameter: click.Parameter | None, context: click.Context | None) -> int:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])?(i)?b?)?", str(value).strip().lower())
        if not found:
            self.fail(f"{value!r} is no size, such as 256MB or 1GiB", parameter, context)
        number, unit, binary = found.groups()
        size = int(float(number) * (1024 if binary else 1000) ** (" kmgt".index(unit) if unit else 0))
        if size < 1000:
            self.fail(f"{value!r} is less than a kilobyte", parameter, context)
        return size


BYTES = Bytes()


def shown() -> bool:
    """Whether somebody watches: progress bars are for terminals."""
    return sys.stderr.isatty()


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "show_default": False})
@click.version_option(package_name="fairface-generator", prog_name="fairface")
def main() -> None:
    """Does a face generator trained on annotated, diverse faces produce balanced faces?

    The whole job is `fairface shards`, `train`, `sample`, `label`, `report`, in this order. Without --data it
    runs on drawn faces whose truth is known. FAIRFACE_DEBUG=1 shows the traceback of an error.
    """


@main.command()
@OUT
@click.option("--data", type=FOLDER, help="Folder to draw into.  [default: OUT/synthetic]")
@click.option("--count", type=click.IntRange(1, 10**8), default=6000, show_default=True, help="Faces.")
@click.option("--size", type=click.IntRange(32, 1024), default=128, show_default=True, help="Side in pixels.")
@click.option("--gender", callback=option_type("gender"), help="Shares, " + SHARE.format("female=0.7,male=0.3"))
@click.option("--age", callback=option_type("age"), help="Shares, " + SHARE.format("young=1,senior=1"))
@click.option(
    "--skin-tone", callback=option_type("skin_tone"), help="Shares of the Monk tones, " + SHARE.format("1=1,10=3")
)
@SEED
@WORKERS
def synth(out, data, count, size, gender, age, skin_tone, seed, workers) -> None:
    """Draw annotated faces in AI-Face's folder layout: a data set whose truth is known."""
    from shards.synthetic import dataset

    given = {"gender": gender, "age": age, "skin_tone": skin_tone}
    shares = dataset.Shares(**{name: value for name, value in given.items() if value})
    root = data or out / "synthetic"
    drawn = dataset.write_dataset(root, count, seed, size, shares, workers, progress=shown())
    click.echo(f"{root}: {drawn['count']:,} drawn faces" + (", unchanged" if drawn["unchanged"] else ""))


@main.command()
@OUT
@click.option("--data", "--data-root", type=FOLDER, help="The images' root; drawn faces when left out.")
@click.option(
    "--annotations", type=FILE, multiple=True, help="Annotation CSV; those found in --data when left out. Repeatable."
)
@click.option("--no-annotations", is_flag=True, help="Leave the CSV files in --data alone.")
@click.option(
    "--age-codes",
    type=click.Choice(["auto", "readme", "released", "first"]),
    default="auto",
    show_default=True,
    help="Which of AI-Face's age codes the tables use.",
)
@click.option(
    "--alias",
    "aliases",
    multiple=True,
    callback=pairs,
    metavar="NAME=NAME",
    help="A folder's name in the tables and on disk, where they differ. Repeatable.",
)
@click.option(
    "--subset", "subsets", multiple=True, help="Pack this family or method only, such as GANs or FFHQ. Repeatable."
)
@click.option("--split", "splits", multiple=True, help="Pack this split only, such as train. Repeatable.")
@click.option(
    "--where", help="Pack what this DuckDB predicate selects, such as \"gender = 'female' and age <> 'child'\"."
)
@click.option("--annotated-only", is_flag=True, help="Leave out the images that have no annotation row.")
@click.option("--limit", type=click.IntRange(1), help="Take a seeded sample of this many images.")
@click.option("--shard-images", type=click.IntRange(1, 10**7), help="Images a tar.  [default: 2048]")
@click.option("--shard-bytes", type=BYTES, help="Size of a tar, such as 256MB, by the files as found.")
@click.option("--size", type=click.IntRange(16, 4096), help="Encode again as JPEG with this shorter side in pixels.")
@click.option("--quality", type=click.IntRange(1, 95), help="JPEG's, with --size.  [default: 90]")
@click.option("--check/--no-check", default=True, show_default=True, help="Decode every image once, reject the broken.")
@SEED
@WORKERS
@FORCE
def shards(out, data, annotations, no_annotations, workers, force, **given) -> None:
    """Pack images and annotations into checked, shuffled tar shards with DALI's index.

    Started by torchrun on a file system that all machines see, every process packs its part.
    """
    from shards.pack import PackConfig

    if given["shard_images"] and given["shard_bytes"]:
        raise click.UsageError("--shard-images and --shard-bytes say the same: give one")
    if given["quality"] and not given["size"]:
        raise click.UsageError("--quality goes with --size, without which the bytes stay as they are")
    if given["size"] and not given["check"]:
        raise click.UsageError("--size decodes every image: it can't go with --no-check")
    if annotations and no_annotations:
        raise click.UsageError("--annotations and --no-annotations exclude each other")
    options = PackConfig(**{name: value for name, value in given.items() if value is not None})
    tables = [] if no_annotations else list(annotations) or None
    pack_into(out, data, options, tables, workers, force)


def pack_into(
    out: Path, data: Path | None, options, tables: list[Path] | None, workers: int | None, force: bool
) -> None:
    """Packs `data` (or faces drawn for it) into OUT/shards and says what happened."""
    from shards import distributed, pack

    with distributed.process_group():
        root = data or distributed.run_on_rank0(lambda: drawn_faces(out, workers, force))
        progress = shown() and distributed.rank() == 0
        packed = pack.pack(root, out / "shards", options, tables, workers, force, progress)
    if distributed.rank() == 0:
        tell_packed(out / "shards", packed)


def drawn_faces(out: Path, workers: int | None, force: bool) -> Path:
    """OUT/synthetic: faces that `fairface synth` drew there are taken as they are, otherwise some are drawn."""
    from shards.synthetic import dataset
    from shards.verify import load_shards_json

    done = load_shards_json(out / "shards") if (out / "shards" / "shards.json").exists() and not force else None
    if done and not done["drawn"]:
        raise FairfaceError(
            f"{out / 'shards'} holds {done['images']:,} images of {done['root']}: name them with --data to "
            "go on with them, or pack drawn faces into another folder with --out"
        )
    root = out / "synthetic"
    if not (root / "drawn.json").exists():
        dataset.write_dataset(root, workers=workers, progress=shown())
        click.echo(f"{root}: drew faces, for want of --data")
    return root


def tell_packed(folder: Path, packed: dict) -> None:
    """The closing summary of a pack."""
    if packed["unchanged"]:
        return click.echo(f"{folder}: {packed['images']:,} images, unchanged")
    seconds, rejected, missed = packed["seconds"], packed["rejected"], packed["unmatched"]
    chosen = packed["images"] + sum(rejected.values())
    click.echo(
        f"{folder}: {packed['images']:,} images packed, {packed['bytes'] / 1e6:,.1f} MB in {len(packed['shards']):,} "
        f"shards, {seconds:.1f} s ({chosen / max(seconds, 0.01):,.0f} images/s)"
    )
    if chosen < packed["found"]:
        click.echo(f"  chosen:    {chosen:,} of {packed['found']:,} images found")
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in rejected.items())
    click.echo(
        f"  rejected:  {sum(rejected.values()):,}" + (f" ({reasons}; `fairface sql rejects`)" if rejected else "")
    )
    if not packed["tables"]:
        click.echo("  annotated: none, for no table was found: the report will compare labels only")
        return None
    click.echo(
        f"  annotated: {packed['matched']:,} of {chosen:,} images ({packed['matched'] / chosen:.1%}) match one of "
        f"{packed['rows']:,} rows in {len(packed['tables']):,} table{'s' * (len(packed['tables']) > 1)}"
    )
    listed = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in missed.items())
    click.echo(
        f"  unmatched: {listed or 'none'}"
        + (f" (`fairface sql unmatched`, {folder / 'unmatched.parquet'})" if missed else "")
    )
    if packed["rows_repeated"]:
        warn(f"{packed['rows_repeated']:,} rows name an image that an earlier row names; the first counts")
    if packed["rows_disagreeing"]:
        warn(f"{packed['rows_disagreeing']:,} rows state an Intersection that is not gender x skin tone")
    if packed["rows_uncoded"]:
        warn(f"{packed['rows_uncoded']:,} rows hold a label that is none of AI-Face's codes: it counts as missing")
    for name in packed["unreadable"][:5]:
        warn(f"{name} could not be read, or is no annotation table")
    if len(packed["unreadable"]) > 5:
        warn(f"{len(packed['unreadable']) - 5:,} more could not be read; shards.json names them")
    return None


def warn(text: str) -> None:
    click.echo(f"Warning: {text}", err=True)


@main.command()
@OUT
@WORKERS
def verify(out, workers) -> None:
    """Read the shards again and hold every byte against what was packed.

    A fault is a bit that flipped, a tar that was cut, a shard or an index that is missing or of another pack. Images
    that were packed with --no-check are decoded too.
    """
    from shards import verify as checking

    faults, images = checking.verify(out / "shards", workers, shown())
    if not faults:
        return click.echo(f"{out / 'shards'}: {images:,} images are as they were packed")
    for fault in faults[:10]:
        click.echo(fault, err=True)
    if len(faults) > 10:
        click.echo(f"... and {len(faults) - 10:,} more", err=True)
    raise FairfaceError(
        f"{len(faults):,} fault{'s' * (len(faults) > 1)} in {out / 'shards'}, the first in {faults[0]}. Copy "
        "the damaged files again from where they are whole, or pack again with `fairface shards --force`"
    )


@main.command()
@click.option(
    "--out",
    "--out-dir",
    type=FOLDER,
    default="outputs",
    show_default=True,
    help="Folder of everything that is written.",
)
@click.option("--data", "--data-root", type=FOLDER, help="Pack this folder first, as `fairface shards --data` does.")
@click.option(
    "--run", help="Name of the run; made from the options when left out, so that the same command continues it."
)
@click.option(
    "--preset",
    type=click.Choice(["auto", "faces", "sketch"]),
    default="auto",
    show_default=True,
    help="faces: DCGAN as published, for real data and a GPU; sketch: a small one for a laptop; "
    "auto: faces for real data where there is a GPU, else sketch.",
)
@click.option("--image-size", type=click.Choice(["32", "64", "128"]), help="Side in pixels.  [default: 64]")
@click.option("--latent-dim", type=click.IntRange(1, 2**16), help="Length of a latent.  [default: 128]")
@click.option("--width-g", type=click.IntRange(1, 4096), help="Generator's channels.  [default: 64; sketch 24]")
@click.option("--width-d", type=click.IntRange(1, 4096), help="Discriminator's channels.  [default: 64; sketch 16]")
@click.option("--batch-size", type=click.IntRange(2), help="Images a step.  [default: 128; sketch 16]")
@click.option("--steps", type=click.IntRange(1), help="Length of the run; a longer one continues a shorter one.")
@click.option(
    "--epochs",
    "--num-epochs",
    type=click.IntRange(1),
    help="The same in epochs.  [default: 10, at least 5000 steps; sketch 3000 steps]",
)
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Adam's learning rate.  [default: 2e-4]")
@click.option("--beta1", type=click.FloatRange(0, 1, max_open=True), help="Adam's.  [default: 0.5]")
@click.option("--beta2", type=click.FloatRange(0, 1, max_open=True), help="Adam's.  [default: 0.999]")
@click.option("--ema", type=click.FloatRange(0, 1, max_open=True), help="Decay of G's average.  [default: 0.995]")
@click.option(
    "--balance",
    callback=target_shares,
    metavar="natural|uniform|FILE",
    help="Draw the groups of a label as they are, equally often, or in the shares of a CSV (group,share).  "
    "[default: natural]",
)
@click.option(
    "--balance-by",
    type=LABEL_COLUMN,
    help="The label that --balance means; images without it are left out.  [default: intersection]",
)
@click.option(
    "--conditional",
    type=LABEL_COLUMN,
    help="Tell G and D this label of every image; images without it are left out.",
)
@click.option("--flip/--no-flip", default=None, help="Mirror half of the images.  [default: flip]")
@click.option(
    "--precision", type=click.Choice(["auto", "bf16", "fp32"]), help="auto: bf16 where the device is fast at it."
)
@click.option("--compile/--no-compile", default=None, help="torch.compile.  [default: on a GPU, and for long runs]")
@click.option(
    "--feed", type=click.Choice(["auto", "resident", "streaming"]), help="auto: resident when the images fit in memory."
)
@click.option(
    "--sample-every", type=click.IntRange(1), default=500, show_default=True, help="Steps between sample grids."
)
@click.option(
    "--save-every-epoch", type=click.IntRange(1), help="Epochs between checkpoints.  [default: every half minute]"
)
@click.option("--keep", type=click.IntRange(1), default=3, show_default=True, help="Checkpoints to keep.")
@click.option("--seed", type=ANY_SEED, help="Of everything random.  [default: 0]")
@WORKERS
@DEVICE
@click.option(
    "--cuda-graphs/--no-cuda-graphs",
    default=None,
    help="Replay a whole step as one CUDA graph, on one GPU.  [default: no-cuda-graphs]",
)
@click.option(
    "--hw-decoder-load",
    type=click.FloatRange(0, 1),
    help="Share of the JPEGs for a GPU's hardware decoder.  [default: 0.65]",
)
@click.option("--other-data", is_flag=True, help="Continue the run on the images that the shards hold now.")
@click.option("--resume", is_flag=True, help="Continue --run, or the newest, with the options it was begun with.")
@FORCE
def train(
    out,
    data,
    run,
    preset,
    steps,
    epochs,
    sample_every,
    save_every_epoch,
    keep,
    workers,
    hw_decoder_load,
    device,
    other_data,
    resume,
    force,
    **given,
) -> None:
    """Train the DCGAN on the shards; the same command continues what was interrupted."""
    from shards.verify import load_shards_json

    if steps and epochs:
        raise click.UsageError("--steps and --epochs say the same: give one")
    if resume and (force or preset != "auto"):
        raise click.UsageError("--resume goes on with what is there: it takes no --force and no --preset")
    if other_data and (force or not (resume or run)):
        raise click.UsageError("--other-data continues a run: name it with --run, or the newest with --resume")
    if other_data and epochs:
        raise click.UsageError("--other-data goes with --steps: epochs of two sets of images are not alike")
    if given["balance_by"] and given["balance"] in (None, "natural"):
        raise click.UsageError("--balance-by goes with --balance uniform, or with a file of shares")
    from shards import distributed

    with distributed.process_group():
        if data:
            from shards.pack import PackConfig as Packing

            pack_into(out, data, Packing(), None, None, False)
        from pipeline.data.loader import DecoderConfig
        from pipeline.gan import train as training
        from pipeline.gan.trainer import PRESETS

        if resume:
            run, preset, begun, until = training.resumed(out, run)
            steps = steps or (None if epochs else until)
        else:
            if preset == "auto":
                preset = training.preset_for(load_shards_json(out / "shards"), device)
            begun = PRESETS[preset]
        if given["image_size"]:
            given["image_size"] = int(given["image_size"])
        options = replace(begun, **{name: value for name, value in given.items() if value is not None})
        done = training.train(
            out,
            options,
            preset,
            steps,
            epochs,
            run,
            device,
            DecoderConfig(workers) if hw_decoder_load is None else DecoderConfig(workers, hw_decoder_load),
            sample_every,
            save_every_epoch,
            keep,
            force,
            shown(),
            other_data,
        )
    if distributed.rank() == 0:
        folder = out / "runs" / done["run"]
        trained = "already trained that far" if done["unchanged"] else f"trained {done['steps']:,} steps"
        click.echo(f"{folder}: {trained}")


@main.command()
@OUT
@RUN
@click.option("--checkpoint", type=FILE, help="This one instead of the run's newest.")
@click.option("--num-samples", type=click.IntRange(1), default=2000, show_default=True, help="Samples.")
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="Samples drawn at the same time, in blocks of 64.  [default: a block a core]",
)
@click.option("--png-dir", "--out-dir", type=FOLDER, help="Write them here as PNG files too: sample_00000.png ...")
@click.option(
    "--weights",
    type=click.Choice(["ema", "g"]),
    default="ema",
    show_default=True,
    help="The generator's moving average, or the generator itself.",
)
@click.option(
    "--group",
    "groups",
    multiple=True,
    help="Ask a conditional generator for this group; in the shares it was trained on when left out. Repeatable.",
)
@click.option(
    "--truncation",
    type=click.FloatRange(0, min_open=True),
    help="Cut the normal of the latents off here: smaller is less varied, more typical.  [default: not cut off]",
)
@SEED
@DEVICE
@FORCE
def sample(
    out, run, checkpoint, num_samples, batch_size, png_dir, weights, groups, truncation, seed, device, force
) -> None:
    """Draw samples of a trained generator into shards and samples.parquet."""
    from math import isfinite

    if run and checkpoint:
        raise click.UsageError("--run means that run's newest checkpoint: give it or --checkpoint")
    if truncation and not isfinite(truncation):
        raise click.BadParameter(f"{truncation} is no finite number", param_hint="--truncation")
    from pipeline.gan import sample as sampling

    done = sampling.sample(
        out,
        run,
        checkpoint,
        num_samples,
        seed,
        batch_size,
        weights,
        png_dir,
        device,
        force,
        shown(),
        groups,
        truncation,
    )
    click.echo(
        f"{done['folder']}: {done['count']:,} samples of {done['checkpoint']}"
        + (", unchanged" if done["unchanged"] else "")
    )


@main.command()
@OUT
@RUN
@click.option(
    "--import",
    "imported",
    type=FILE,
    help="Take a run's labels from this CSV: the original's, or one that --out-csv wrote.  "
    "[default --run: the file's name]",
)
@click.option("--input-dir", type=FOLDER, help="Label this plain folder of images instead, into --out-csv.")
@click.option("--out-csv", type=FILE, help="Where the labels of --input-dir go.")
@click.option(
    "--clip-model", help="Any open_clip model, or `embedded`.  [default: ViT-B-32-quickgelu; embedded for drawn faces]"
)
@click.option("--clip-pretrained", help="Its tag, or the path of a checkpoint.  [default: openai]")
@click.option("--prompts", help="A set of models/prompts.toml, or a file of that form.  [default: faces]")
@click.option("--limit", type=click.IntRange(1), help="Label only this many of the training images, a random sample.")
@click.option("--batch-size", type=click.IntRange(1), default=256, show_default=True, help="Images a forward pass.")
@DEVICE
@FORCE
def label(
    out, run, imported, input_dir, out_csv, clip_model, clip_pretrained, prompts, limit, batch_size, device, force
) -> None:
    """Label a run's samples and the training images alike: with CLIP, a probe on its embeddings, and from pixels."""
    if imported:
        source = click.get_current_context().get_parameter_source
        moot = [n for n in ("device", "batch_size") if source(n) is not click.core.ParameterSource.DEFAULT]
        if input_dir or out_csv or clip_model or clip_pretrained or prompts or limit or moot:
            raise click.UsageError("--import takes labels as they are: only --out, --run and --force go with it")
        from pipeline.labelling import import_labels
        from shards import distributed

        if distributed.world_size() > 1:
            raise click.UsageError("--import is done by one process: run it without torchrun")
        done = import_labels.import_labels(out, imported, run, force)
        click.echo(f"{done['folder']}: {done['images']:,} labels of {imported}")
        return
    if bool(input_dir) != bool(out_csv):
        raise click.UsageError("--input-dir and --out-csv go together")
    if input_dir and (run or limit):
        raise click.UsageError("--run and --limit go with a run's labels, not with --input-dir")
    from pipeline.labelling import label as labelling
    from shards import distributed

    if input_dir and distributed.world_size() > 1:
        raise click.UsageError("--input-dir is labelled by one process: run it without torchrun")
    who = {
        "model": clip_model,
        "pretrained": clip_pretrained,
        "prompts": prompts,
        "device": device,
        "batch": batch_size,
    }
    if input_dir:
        done = labelling.label_folder(input_dir, out_csv, **who, progress=shown())
        rejected = f", {sum(done['rejected'].values()):,} could not be decoded" if done["rejected"] else ""
        click.echo(f"{out_csv}: {done['images']:,} images labelled by {done['labeller']}{rejected}")
        return
    sides, judged = labelling.label(out, run, **who, limit=limit, force=force, progress=shown())
    if distributed.rank():
        return
    for done in sides:
        state = ", unchanged" if done["unchanged"] else ""
        click.echo(f"{done['source']}: {done['images']:,} images labelled by {done['labeller']}{state}")
    tell_judged(judged)


def tell_judged(judged) -> None:
    """How good CLIP and the probe are, and which of them counts."""
    if judged is None:
        return click.echo("  too few annotated images to fit a probe to, or to tell how often the labeller errs")
    for attribute, rows in judged.group_by("attribute", maintain_order=True):
        said = [
            f"{row['method']} {row['balanced_accuracy']:.2f}{' (counts)' * row['chosen']}"
            for row in rows.sort("method").iter_rows(named=True)
        ]
        name = attribute[0].replace("_", " ") + ":"
        click.echo(f"  {name:13} balanced accuracy {', '.join(said)} on {rows['n'][0]:,} annotated images")
    return None


@main.command()
@click.option("--cache", type=FOLDER, help="Where it is kept.  [default: XDG_CACHE_HOME/fairface]")
def labeller(cache) -> None:
    """Fit the embedded labeller of drawn faces, unless it is cached, and show how good it is."""
    from pipeline.labelling import embedded

    path = embedded.fit(cache, progress=shown())
    click.echo(f"{path}\n{embedded.describe(path)}")


@main.command()
@OUT
@click.option(
    "--run", "runs", multiple=True, help="Name of the run; the newest when left out. Several stand side by side."
)
@FORCE
def report(out, runs, force) -> None:
    """Write the report: estimates, figures and one page that opens anywhere."""
    from reports import page
    from shards.atomic_io import read_json

    path, rebuilt = page.build(out, runs, force)
    click.echo(f"{path}" + ("" if rebuilt else ", unchanged"))
    said = read_json(path.with_name("report.json"))
    for one in said.get("pages", [said]):
        if one["missing"]:
            warn(f"{one['missing']}; the page shows what is there")


@main.command()
@OUT
@click.option(
    "--data", "--datapath", type=FOLDER, help="Pack the images below this folder first; OUT/shards otherwise."
)
@click.option(
    "--model",
    "models",
    multiple=True,
    help="xception, efficientnet, vit, univfd, core, f3net, spsl, srm, ucf, daw_fdd, dag_fdd, pg_fdd, or all. "
    "Repeatable.  [default: xception]",
)
@click.option("--name", help="Of the detector.  [default: the model's, or the file's]")
@click.option(
    "--preset",
    type=click.Choice(["auto", "benchmark", "sketch"]),
    default="auto",
    show_default=True,
    help="benchmark: AI-Face's settings; sketch: 64 pixels and a few minutes; auto: by data and machine.",
)
@click.option(
    "--fakes",
    type=click.Choice(["auto", "images", "samples"]),
    default="auto",
    show_default=True,
    help="Learn from fakes among the images, or from a run's samples; auto: where the images hold both kinds, those.",
)
@click.option("--run", help="Of the samples that serve as fakes; the newest when left out.")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Learning rate.  [default: 0.0005]")
@click.option(
    "--train-batchsize",
    "--train_batchsize",
    "--batch-size",
    "batch_size",
    type=click.IntRange(1),
    help="Images of a step; pairs for ucf and pg_fdd.  [default: 128]",
)
@click.option(
    "--test-batchsize",
    "--test_batchsize",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Images judged at a time.",
)
@click.option("--epochs", type=click.IntRange(1), help="[default: 10]")
@click.option("--steps", type=click.IntRange(1), help="Instead of --epochs.")
@click.option("--momentum", type=click.FloatRange(0, 1, max_open=True), help="Of SGD.  [default: 0.9]")
@click.option("--weight-decay", type=click.FloatRange(0), help="[default: 0.005]")
@click.option("--lr-step", type=click.IntRange(1), help="Epochs after which the learning rate falls.  [default: 60]")
@click.option("--lr-gamma", type=click.FloatRange(0, 1, min_open=True), help="By this factor.  [default: 0.9]")
@click.option("--image-size", type=click.IntRange(64, 1024), help="Pixels.  [default: 256; 224 for vit and univfd]")
@click.option("--pretrained", help="Weights of the backbone: a tag of timm or open_clip, or a file.")
@click.option("--from-scratch", is_flag=True, default=None, help="Begin with random weights, as for drawn faces.")
@click.option(
    "--postprocess",
    "changes",
    multiple=True,
    type=click.Choice(["all", *POSTPROCESSED]),
    help="Judge the test faces so changed, too. Repeatable.",
)
@click.option("--seed", type=ANY_SEED, help="Of everything random.  [default: 0]")
@click.option("--precision", type=click.Choice(["auto", "bf16", "fp32"]), help="[default: auto]")
@click.option("--compile/--no-compile", default=None, help="torch.compile.  [default: on a GPU]")
@click.option("--feed", type=click.Choice(["auto", "resident", "streaming"]), help="[default: auto]")
@WORKERS
@DEVICE
@click.option("--import", "csv", type=FILE, help="Predictions made elsewhere: gender, skin_group, age, target, logit.")
@FORCE
def detect(
    out, data, models, name, preset, fakes, run, test_batchsize, steps, changes, workers, device, csv, force, **given
) -> None:
    """Train detectors of generated faces, and judge them by group: utility, fairness, and what they say of samples.

    The same command continues what was interrupted. With --import the predictions of any other detector are judged.
    """
    from shards import distributed

    given = {option: value for option, value in given.items() if value is not None}
    if csv:
        source = click.get_current_context().get_parameter_source
        others = {
            "data",
            "models",
            "preset",
            "fakes",
            "run",
            "test_batchsize",
            "steps",
            "changes",
            "workers",
            "device",
            *given,
        }
        if any(source(option) is not click.core.ParameterSource.DEFAULT for option in others):
            raise click.UsageError("--import takes predictions as they are: only --out, --name and --force go with it")
        if distributed.world_size() > 1:
            raise click.UsageError("predictions are taken by one process: run it without torchrun")
        from pipeline.detection import import_predictions

        done = import_predictions.import_predictions(out, csv, name, force)
        click.echo(
            f"{done['folder']}: {done['images']:,} predictions, {done['real']:,} of real and {done['fake']:,} of fake"
        )
        return tell_fairness(out, Path(done["folder"]).name)
    if steps and "epochs" in given:
        raise click.UsageError("--steps and --epochs say the same: give one")
    if given.get("pretrained") and given.get("from_scratch"):
        raise click.UsageError("--pretrained and --from-scratch exclude each other")
    from models.detectors import DETECTORS, find_detector

    chosen = list(DETECTORS) if "all" in models else [find_detector(model)[0] for model in models or ["xception"]]
    chosen = list(dict.fromkeys(chosen))
    if name and len(chosen) > 1:
        raise click.UsageError("--name goes with one --model: the others would take its place")
    with distributed.process_group():
        if data:
            from shards.pack import PackConfig as Packing

            pack_into(out, data, Packing(), None, None, False)
        from pipeline.data.loader import DecoderConfig
        from pipeline.detection import evaluate as evaluation
        from pipeline.detection import train as detecting
        from pipeline.detection.perturbations import PERTURBATIONS

        judging = evaluation.EvaluationConfig(
            test_batchsize, tuple(PERTURBATIONS) if "all" in changes else tuple(dict.fromkeys(changes))
        )
        lacking = []
        for model in chosen:
            settings = detecting.preset_for(out, name or model, device) if preset == "auto" else preset
            short = settings == "sketch" and "epochs" not in given
            options = detecting.options_of(out, model, settings, given)
            try:
                done = detecting.train_and_evaluate(
                    out,
                    options,
                    name or model,
                    settings,
                    steps,
                    short,
                    fakes,
                    run,
                    judging,
                    device,
                    DecoderConfig(workers),
                    force,
                    shown(),
                )
            except WeightsUnavailable as error:  # weights that can't be had are no reason to leave out the others
                if len(chosen) == 1 or distributed.world_size() > 1:
                    raise
                lacking.append(model)
                warn(f"{model}: {error}")
                continue
            if distributed.rank() == 0:
                tell_detector(out, done)
    if lacking:
        raise click.ClickException(f"{', '.join(lacking)} could not be trained: see above for what is needed")
    return None


def tell_detector(out: Path, done: dict) -> None:
    """What a detector said, and of whom."""
    import sql

    counts, name = done["counts"], done["detector"]
    click.echo(
        f"{out / 'detectors' / name}: trained {done['steps']:,} steps, judged by {counts['test_real']:,} real faces "
        f"and {counts['test_fake']:,} fakes" + (", unchanged" if done["unchanged"] else "")
    )
    tell_fairness(out, name)
    if done["grouped_by"] == "labelled" and not len(sql.ask(sql.connect(out), "fairness", detector=name)):
        warn("no face is labelled: `fairface label` says who they are, and `fairface detect` then judges by group")


def tell_fairness(out: Path, name: str) -> None:
    """Writes a detector's figures with their intervals, unless they are there, and says the most important ones."""
    import sql
    from reports import detection

    connection = sql.connect(out)
    detection.keep(out, connection, name)
    whole = sql.ask(connection, "utility", detector=name, attribute="all").row(0, named=True)
    figures = {
        "AUC": "auc",
        "accuracy": "accuracy",
        "AP": "average_precision",
        "EER": "eer",
        "FPR": "fpr",
        "TPR": "tpr",
    }
    said = [f"{title} {whole[column]:.3f}" for title, column in figures.items() if whole[column] is not None]
    click.echo(f"  {'all faces:':13} {', '.join(said)}")
    for row in sql.ask(connection, "fairness", detector=name).iter_rows(named=True):
        left_out = f", without {row['undefined']}" if row["undefined"] else ""
        figures = ", ".join(f"{m.upper()} {row[m]:.3f}" for m in ("f_meo", "f_dp", "f_oae", "f_eo", "f_efpr"))
        click.echo(f"  {row['attribute'].replace('_', ' ') + ':':13} {figures}{left_out}")
    click.echo("  intervals: `fairface sql detection`; of samples: `fairface sql detected`")


@main.command("sql")
@click.argument("name", required=False)
@OUT
@click.option("--views", is_flag=True, help="Print the SQL of the views, for a DuckDB of your own.")
@click.option("-c", "--command", "text", help="Any SELECT over the views instead of a named question.")
@click.option("--param", multiple=True, metavar="NAME=VALUE", help="A parameter of the question. Repeatable.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json", "parquet", "markdown"]),
    default="table",
    show_default=True,
    help="Parquet goes into a file, with -o.",
)
@click.option("-o", "--output", type=FILE, help="Write there instead of to the terminal.")
def ask(name, out, views, text, param, form, output) -> None:
    """Ask the results a question: by NAME, or any SELECT. Without either, the questions are listed."""
    import sql
    from shards.atomic_io import atomic_write, write_parquet

    if views and (name or text or param or output or form != "table"):
        raise click.UsageError("--views goes with --out alone")
    if param and not name:
        raise click.UsageError("--param goes with a named question")
    if not name and not text and not views:
        return click.echo(list_questions())
    if form == "parquet" and not output:
        raise click.UsageError("--format parquet goes into a file: name it with -o")
    if bool(name) == bool(text) and not views:
        raise click.UsageError("give a question's name or -c, not both")
    if bad := [pair for pair in param if "=" not in pair]:
        raise click.BadParameter(f"{bad[0]!r} is not NAME=VALUE", param_hint="--param")
    if not out.is_dir():
        raise FairfaceError(f"there is no folder {out}: run `fairface shards` first, or name another with --out")
    if views:
        return click.echo(sql.views(out))
    connection = sql.connect(out)
    params = dict(pair.split("=", 1) for pair in param)
    answer = sql.query(connection, text) if text else sql.ask(connection, name, **params)
    if form == "parquet":
        return write_parquet(output, answer)
    rendered = render(answer, form)
    if not output:
        return click.echo(rendered)
    with atomic_write(output) as file:
        file.write(rendered.encode() + b"\n")


def list_questions() -> str:
    """Every question with its parameters, for a person."""
    import sql

    lines = []
    for name, question in sql.questions().items():
        lines.append(f"{name}: {question.title}")
        lines += [
            f"    --param {key}={'...' if p.default is None else p.default}  {p.meaning}"
            for key, p in question.params.items()
        ]
    return "\n".join(lines)


def render(frame, form: str) -> str:
    """A Polars frame as text."""
    import polars as pl

    if form == "csv":
        return frame.write_csv().rstrip("\n")
    if form == "json":
        return frame.write_json()
    style = "ASCII_MARKDOWN" if form == "markdown" else "NOTHING"
    with pl.Config(
        tbl_rows=-1,
        tbl_cols=-1,
        tbl_width_chars=10_000,
        fmt_str_lengths=200,
        tbl_formatting=style,
        tbl_hide_dataframe_shape=True,
        tbl_hide_column_data_types=True,
        float_precision=4,
    ):
        return str(frame)


@main.command()
@click.argument("stages", nargs=-1)
@click.option("--images", type=click.IntRange(512), default=2000, show_default=True, help="Drawn JPEGs to measure on.")
@click.option("--json", "json_file", type=FILE, help="Write the rows here too.")
@click.option("--markdown", type=FILE, help="Write the table into its machine's section of this file too.")
@DEVICE
def bench(stages, images, json_file, markdown, device) -> None:
    """Measure speed, every figure beside a plain baseline in the same run.

    STAGES are pack, verify, scale, join, feed, train, sample, label, detect, estimates and report; all when left out.
    """
    from pipeline.bench import run as benchmarks

    benchmarks.run(stages, device, images, json_file, markdown)


if __name__ == "__main__":
    main()
