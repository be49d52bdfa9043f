"""The command that measures speed: `bench`."""

from pathlib import Path

import click

from pipeline.bench.context import WORLDS, SizesConfig, TrialsConfig, WorldsConfig
from pipeline.cli.options import FILE, FOLDER, POSITIVE, device_option, given_options


@click.command()
@click.argument("stages", nargs=-1)
@click.option(
    "--images",
    type=click.IntRange(512, 10**8),
    default=2000,
    show_default=True,
    help="Number of synthetic JPEGs to measure on.",
)
@click.option(
    "--evaluated-faces",
    type=click.IntRange(1000, 10**8),
    default=100_000,
    show_default=True,
    help="Number of faces whose metrics `detect` computes; the baseline is a tenth of them.",
)
@click.option("--json", "json_file", type=FILE, help="Also write the rows to this file.")
@click.option("--markdown", type=FILE, help="Also write the table into this machine's section of this file.")
@click.option(
    "--labelled-faces",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="CSV of real faces with columns such as age and labelled_age, which `estimates` and `audit` resample.",
)
@click.option(
    "--worlds",
    type=click.IntRange(1, 10**6),
    default=WORLDS,
    show_default=True,
    help="Number of populations that `estimates` and `audit` simulate for each scenario.",
)
@click.option(
    "--annotated-faces",
    type=FOLDER,
    help="Folder of annotated images that `gan` trains on instead of synthetic faces.",
)
@click.option(
    "--seconds", type=POSITIVE, default=90, show_default=True, help="Length of each training run of `gan`, in seconds."
)
@click.option(
    "--seeds",
    type=click.IntRange(1, 100),
    default=3,
    show_default=True,
    help="Number of training runs of each recipe of `gan`.",
)
@click.option("--recipe", "recipes", multiple=True, help="Recipe that `gan` trains. Repeatable.  [default: all]")
@device_option
def bench(
    stages: tuple[str, ...],
    images: int,
    evaluated_faces: int,
    json_file: Path | None,
    markdown: Path | None,
    labelled_faces: Path | None,
    worlds: int,
    annotated_faces: Path | None,
    seconds: float,
    seeds: int,
    recipes: tuple[str, ...],
    device: str,
) -> None:
    """Measure speed next to plain baselines.

    Each rate and its baseline are measured in the same run. STAGES are pack, verify, scale, join, feed, train, sample,
    label, detect, estimates, study, audit, report and gan; by default all but gan, which compares training recipes.
    """
    if "gan" not in stages and (unused := given_options() & {"annotated_faces", "seconds", "seeds", "recipes"}):
        name = min(unused).replace("recipes", "recipe").replace("_", "-")
        raise click.UsageError(f"--{name} applies to the stage gan, which runs only if it is named")
    from pipeline.bench import run as benchmarks

    benchmarks.run(
        stages,
        device=device,
        sizes=SizesConfig(images, evaluated_faces),
        json_file=json_file,
        markdown=markdown,
        worlds=WorldsConfig(labelled_faces, worlds),
        trials=TrialsConfig(annotated_faces, seconds, seeds, recipes),
    )
