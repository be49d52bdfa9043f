"""Commands that write and check shards: `synth`, `shards`, `verify`."""

from pathlib import Path
from typing import Any

import click

from pipeline.cli import console
from pipeline.cli.options import (
    BELOW_ONE,
    BYTE_SIZE,
    FILE,
    FOLDER,
    IMAGES,
    aliases_callback,
    attributes_option,
    drop_unset,
    force_option,
    seed_option,
    shares_callback,
    workers_option,
    workspace_option,
)
from shards.errors import FairfaceError
from shards.layouts import parse_columns
from shards.workspace import Workspace

SHARES_HELP = "such as {}; classes that are not listed get none."


def columns_callback(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> tuple[tuple[str, str], ...] | None:
    """Parse ATTRIBUTE=COLUMN,..."""
    try:
        return None if value is None else parse_columns(value)
    except FairfaceError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@workspace_option()
@click.option("--data", type=FOLDER, help="Folder for the faces.  [default: OUT/synthetic]")
@click.option("--count", type=IMAGES, default=6000, show_default=True, help="Number of faces.")
@click.option(
    "--size", type=click.IntRange(32, 1024), default=128, show_default=True, help="Image size (side) in pixels."
)
@click.option(
    "--gender",
    callback=shares_callback("gender"),
    metavar="SHARES",
    help="Shares of genders, " + SHARES_HELP.format("female=0.7,male=0.3"),
)
@click.option(
    "--age",
    callback=shares_callback("age"),
    metavar="SHARES",
    help="Shares of ages, " + SHARES_HELP.format("young=1,senior=1"),
)
@click.option(
    "--skin-tone",
    callback=shares_callback("skin_tone"),
    metavar="SHARES",
    help="Shares of Monk skin tones, " + SHARES_HELP.format("1=1,10=3"),
)
@click.option(
    "--fakes",
    type=BELOW_ONE,
    default=0.0,
    metavar="SHARE",
    help="Share of fakes, for `detect`: faces with the traces of generators of several families and methods; the "
    "others are real faces. Without it, all faces are in one subset.",
)
@seed_option
@workers_option
def synth(
    workspace: Workspace,
    data: Path | None,
    count: int,
    size: int,
    fakes: float,
    seed: int,
    workers: int | None,
    **shares: Any,
) -> None:
    """Render annotated synthetic faces in AI-Face's folder layout.

    Their attributes are known, so the whole pipeline can be checked against the truth.
    """
    from shards.synthetic import dataset

    config = dataset.SyntheticConfig(
        count=count, size=size, fake_share=fakes, seed=seed, shares=dataset.Shares(**drop_unset(shares))
    )
    folder = data or workspace.synthetic
    result = dataset.write_dataset(folder, config, workers=workers, progress=console.is_interactive())
    console.print_synthetic_summary(folder, result)


@click.command()
@workspace_option()
@click.option("--data", "--data-root", type=FOLDER, help="Root folder of the images.  [default: synthetic faces]")
@click.option(
    "--annotations", type=FILE, multiple=True, help="Annotation table. Repeatable.  [default: those found below --data]"
)
@click.option(
    "--columns",
    callback=columns_callback,
    metavar="ATTRIBUTE=COLUMN,...",
    help="The column of each attribute in a CSV of unknown layout, such as gender=sex,age=years; needs --annotations. "
    "Values are class names; ages may be in years.",
)
@click.option(
    "--no-annotations", is_flag=True, help="Ignore the annotation tables below --data, and labels in file names."
)
@attributes_option
@click.option(
    "--age-codes",
    type=click.Choice(["auto", "readme", "released", "first"]),
    default="auto",
    show_default=True,
    help="The age codes in AI-Face's tables; auto: by their values.",
)
@click.option(
    "--alias",
    "aliases",
    multiple=True,
    callback=aliases_callback,
    metavar="NAME=NAME",
    help="Two names of the same folder, in the tables and on disk. Repeatable.",
)
@click.option(
    "--subset", "subsets", multiple=True, help="Pack only this family or method, such as GANs or FFHQ. Repeatable."
)
@click.option("--split", "splits", multiple=True, help="Pack only this split, such as train. Repeatable.")
@click.option(
    "--where",
    metavar="PREDICATE",
    help="Pack only what this DuckDB predicate selects, such as \"gender = 'female' and age <> 'child'\".",
)
@click.option("--annotated-only", is_flag=True, help="Leave out images without an annotation row.")
@click.option("--limit", type=IMAGES, help="Pack a seeded random sample of this many images.")
@click.option("--shard-images", type=click.IntRange(1, 10**7), help="Images per tar.  [default: 2048]")
@click.option(
    "--shard-bytes", type=BYTE_SIZE, help="Size of a tar in source bytes, such as 256MB, instead of --shard-images."
)
@click.option(
    "--size", type=click.IntRange(16, 4096), help="Re-encode images as JPEG with this shorter side in pixels."
)
@click.option("--quality", type=click.IntRange(1, 95), help="JPEG quality, with --size.  [default: 90]")
@click.option(
    "--check/--no-check", default=True, show_default=True, help="Decode every image once and reject damaged ones."
)
@seed_option
@workers_option
@force_option
def shards(
    workspace: Workspace,
    data: Path | None,
    annotations: tuple[Path, ...],
    no_annotations: bool,
    attributes: Path | None,
    workers: int | None,
    force: bool,
    **options: Any,
) -> None:
    """Pack images and annotations into shuffled tar shards.

    Every image is checked, and every tar has an index file for DALI. Under torchrun on a shared file system, each
    process packs its share.
    """
    from shards.plan import PackConfig

    check_pack_options(annotations=annotations, no_annotations=no_annotations, **options)
    tables = [] if no_annotations else list(annotations) or None
    config = PackConfig(**drop_unset(options), attributes=str(attributes) if attributes else None)
    pack(workspace, data, config=config, tables=tables, workers=workers, force=force)


def check_pack_options(*, annotations: tuple[Path, ...], no_annotations: bool, **options: Any) -> None:
    """Raise UsageError for options that contradict each other or would have no effect."""
    if options["shard_images"] and options["shard_bytes"]:
        raise click.UsageError("--shard-images and --shard-bytes are alternatives: use one of them")
    if options["quality"] and not options["size"]:
        raise click.UsageError("--quality needs --size: without it images are not re-encoded")
    if options["size"] and not options["check"]:
        raise click.UsageError("--size decodes every image, so it can't be combined with --no-check")
    if options["columns"] and not annotations:
        raise click.UsageError("--columns needs --annotations: tables below --data are recognised by their columns")
    if options["columns"] and options["age_codes"] != "auto":
        raise click.UsageError("--age-codes names AI-Face's codes, so it can't be combined with --columns")
    if annotations and no_annotations:
        raise click.UsageError("--annotations and --no-annotations can't be combined")


def pack(workspace: Workspace, data: Path | None, **options: Any) -> None:
    """Pack `data`, or synthetic faces, with options of `pipeline.packing.pack_images`, and print the summary."""
    from pipeline.packing import pack_images

    result = pack_images(workspace, data, progress=console.is_interactive(), announce=console.echo, **options)
    console.print_pack_summary(workspace.shards, result)


@click.command()
@workspace_option()
@workers_option
def verify(workspace: Workspace, workers: int | None) -> None:
    """Check everything below OUT against what was written, byte by byte.

    Finds changed bytes, truncated tars, and shards or index files that are missing or belong to another pack. Images
    that were packed with --no-check are also decoded. Checkpoints, samples, labels, predictions, pages and synthetic
    faces are compared with their checksums, and labels and predictions must belong to the present images.
    """
    from pipeline.verify import verify as verify_all

    result = verify_all(workspace, workers=workers, progress=console.is_interactive())
    console.print_faults(workspace, result.faults)
    if result.images:
        console.echo(f"{workspace.shards.folder}: all {result.images:,} images are intact")
    console.echo(f"{workspace.root}: all {result.files:,} other files are intact")
