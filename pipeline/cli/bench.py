"""The command that measures speed: `bench`."""

from pathlib import Path

import click

from pipeline.cli.options import FILE, device_option


@click.command()
@click.argument("stages", nargs=-1)
@click.option(
    "--images",
    type=click.IntRange(512, 10**8),
    default=2000,
    show_default=True,
    help="Number of synthetic JPEGs to measure on.",
)
@click.option("--json", "json_file", type=FILE, help="Also write the rows to this file.")
@click.option("--markdown", type=FILE, help="Also write the table into this machine's section of this file.")
@click.option(
    "--labelled-faces",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="CSV of real faces with columns such as age and labelled_age, which `estimates` resamples.",
)
@device_option
def bench(
    stages: tuple[str, ...],
    images: int,
    json_file: Path | None,
    markdown: Path | None,
    labelled_faces: Path | None,
    device: str,
) -> None:
    """Measure speed next to plain baselines.

    Each rate and its baseline are measured in the same run. STAGES are pack, verify, scale, join, feed, train, sample,
    label, detect, estimates, study and report; all of them by default.
    """
    from pipeline.bench import run as benchmarks

    benchmarks.run(
        stages,
        device=device,
        images=images,
        json_file=json_file,
        markdown=markdown,
        labelled_faces=labelled_faces,
    )
