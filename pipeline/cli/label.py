"""Commands that label faces: `label` and `labeller`."""

from pathlib import Path
from typing import Any

import click

from pipeline.cli import console
from pipeline.cli.options import (
    FILE,
    FOLDER,
    IMAGES,
    MAX_BATCH,
    attributes_option,
    device_option,
    force_option,
    given_options,
    refuse_torchrun,
    run_option,
    threads_option,
    workspace_option,
)
from shards.workspace import Workspace


@click.command()
@workspace_option()
@run_option
@click.option(
    "--import",
    "csv",
    type=FILE,
    help="Import a run's labels from this CSV: the original FairFace Generator's, or one written with --out-csv.  "
    "[default for --run: the name of the file]",
)
@click.option("--input-dir", type=FOLDER, help="Label this plain folder of images instead, into --out-csv.")
@click.option("--out-csv", type=FILE, help="CSV for the labels of --input-dir.")
@click.option(
    "--clip-model",
    "model",
    help="An open_clip model, or `embedded`.  [default: ViT-B-32-quickgelu; embedded for synthetic faces]",
)
@click.option(
    "--clip-pretrained", "pretrained", help="Tag of the model's weights, or a checkpoint file.  [default: openai]"
)
@click.option("--prompts", help="A prompt set of models/prompts.toml, or a file in the same format.  [default: faces]")
@click.option(
    "--classifier/--no-classifier",
    default=None,
    help="Also label by a classifier that is fitted to half of the annotated training images.  "
    "[default: only for faces that are not synthetic]",
)
@attributes_option
@click.option("--limit", type=IMAGES, help="Label only a random sample of this many training images.")
@click.option(
    "--batch-size", type=click.IntRange(1, MAX_BATCH), default=256, show_default=True, help="Images per forward pass."
)
@device_option
@threads_option
@force_option
def label(
    workspace: Workspace,
    csv: Path | None,
    input_dir: Path | None,
    out_csv: Path | None,
    attributes: Path | None,
    **options: Any,
) -> None:
    """Label a run's samples and the training images.

    Both are labelled by the same methods: CLIP, a probe on its embeddings, a classifier fitted to the annotated
    images, and the colour of skin pixels. Without CLIP's weights, the classifier takes CLIP's place.
    """
    check_label_options(csv, input_dir, out_csv=out_csv, attributes=attributes, **options)
    if csv:
        from pipeline.labelling.import_labels import import_labels

        imported = import_labels(workspace, csv, run=options["run"], force=options["force"])
        console.echo(f"{imported.folder.folder}: {imported.images:,} labels of {csv}")
        return
    from pipeline.labelling import label as labelling
    from shards import distributed
    from shards.own_attributes import replace_own_attributes

    if attributes:
        with distributed.process_group():
            distributed.run_on_rank0(lambda: replace_own_attributes(workspace, attributes))
    config = labelling.LabelConfig(**options, progress=console.is_interactive())
    if input_dir and out_csv:
        console.print_folder_labels(out_csv, labelling.label_folder(input_dir, out_csv, config))
    else:
        console.print_label_summary(labelling.label(workspace, config))


def check_label_options(csv: Path | None, input_dir: Path | None, *, out_csv: Path | None, **options: Any) -> None:
    """Raise UsageError for options that contradict each other or would have no effect."""
    if csv:
        if given_options() - {"workspace", "run", "csv", "force"}:
            raise click.UsageError("--import can be combined only with --out, --run and --force")
        refuse_torchrun("--import")
    if bool(input_dir) != bool(out_csv):
        raise click.UsageError("--input-dir and --out-csv go together")
    if input_dir and given_options() & {"run", "limit", "classifier", "attributes"}:
        raise click.UsageError(
            "--run, --limit, --classifier and --attributes apply to the labels of a run, not to --input-dir"
        )
    if input_dir:
        refuse_torchrun("--input-dir")


@click.command()
@click.option("--cache", type=FOLDER, help="Cache folder.  [default: XDG_CACHE_HOME/fairface]")
def labeller(cache: Path | None) -> None:
    """Fit the labeller for synthetic faces and print its accuracy.

    A cached labeller is not fitted again. `fairface label` fits one when it needs it.
    """
    from pipeline.labelling.embedded import describe, fit

    path = fit(cache, progress=console.is_interactive())
    console.echo(f"{path}\n{describe(path)}")
