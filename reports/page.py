"""The report: every estimate of one run, on one page that opens anywhere and in one JSON file."""

import hashlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

import sql
from reports import comparison, contents, detection, estimate, faces, figures
from shards.atomic_io import (
    LABELS,
    atomic_write,
    exclusive_lock,
    fingerprint,
    is_complete_parquet,
    read_json,
    write_json,
)
from shards.errors import FairfaceError

HERE = Path(__file__).parent
FIGURES = ("comparison-*", "runs-*", "ratios.*", "losses.*", "discriminator.*", "faces-*.png")  # what `draw` saves


def build(out: Path, runs: Sequence[str] = (), force: bool = False) -> tuple[Path, bool]:
    """Writes the page, `report.json`, the estimates and the figures of a run, the newest when none is named.

    Of several runs each has its own page below `report/runs/`, and the page that is returned has them side by side.
    Returns it and whether it was built: where the inputs are as they were for the last one, it is left alone unless
    `force`. What a run lacks so far is said on its page, with the command to run; FairfaceError where there is none to
    make a page of, or where labels can't be compared.
    """
    out = Path(out)
    with exclusive_lock(out / "report", "writing it"):
        return built(out, runs, force)


def built(out: Path, runs: Sequence[str], force: bool) -> tuple[Path, bool]:
    """As `build` says, by the only process that is at it."""
    detection.keep_all(out)  # what is known of faces may have changed since they were written
    connection = sql.connect(out)
    names = [estimate.choose_run(connection, out, run) for run in runs or (None,)]
    if len(names) == 1:
        return single(out, names[0], out / "report", force)
    if len(set(names)) < len(names):
        raise FairfaceError("--run names a run twice")
    if len(names) > len(figures.RUNS):
        raise FairfaceError(f"{len(names)} runs side by side are too many to read: name {len(figures.RUNS)} at most")
    folder = out / "report"
    again = [single(out, run, folder / "runs" / run, force)[1] for run in names]
    mark = fingerprint([inputs(out, run) for run in names])
    if not any(again) and not force and current(folder, mark):
        return folder / "index.html", False
    connection = sql.connect(out)
    facts = [read_json(folder / "runs" / run / "report.json") for run in names]
    clear(folder)
    said = comparison.gather(connection, facts)
    write(out, folder, "comparison.html.j2", mark, said, comparison.draw(connection, out, said))
    return folder / "index.html", True


def single(out: Path, run: str, folder: Path, force: bool) -> tuple[Path, bool]:
    """The page of one run in `folder`, and whether it was built."""
    mark, connection = inputs(out, run), sql.connect(out)  # of what is there now: another run's page may have left more
    if not force and current(folder, mark) and estimated(out, connection, run, folder):
        return folder / "index.html", False
    config = read_json(out / "runs" / run / "config.json")
    shards, samples = (
        read_json(p) or {} for p in (out / "shards" / "shards.json", out / "runs" / run / "samples.json")
    )
    labels = read_json(out / "runs" / run / "labels.json") or {}
    check_manifest(run, config, shards, samples)
    try:
        labelled, missing = finished(out, connection, run), None
        estimate.write(out, connection, run)
    except estimate.NotYet as error:
        labelled, missing = None, str(error)
        estimate.forget(out, connection, run)
    connection = sql.connect(out)  # the estimates are there now
    facts = contents.gather(connection, run, config, shards, labelled, samples, labels, missing)
    clear(folder)
    write(out, folder, "page.html.j2", mark, facts, draw(connection, out, run, folder, facts))
    return folder / "index.html", True


def estimated(out: Path, connection: duckdb.DuckDBPyConnection, run: str, folder: Path) -> bool:
    """Whether the tables hold what the page in `folder` says of a run: they are written for others, too."""
    if not all(is_complete_parquet(out / "report" / f"{name}.parquet") for name in estimate.TABLES):
        return False
    there = sql.select(connection, "select count(*) as n from estimates where run = $run", {"run": run})["n"][0]
    return bool(there) != bool((read_json(folder / "report.json") or {}).get("missing"))


def current(folder: Path, mark: str) -> bool:
    """Whether the page in `folder` was made of just that."""
    last = read_json(folder / "report.json") or {}
    return (folder / "index.html").exists() and last.get("fingerprint") == mark


def clear(folder: Path) -> None:
    """Takes away the figures of the page before: they may be another run's."""
    for kind in FIGURES:
        for path in folder.glob(kind):
            path.unlink()


def write(out: Path, folder: Path, template: str, mark: str, facts: dict[str, Any], drawn: dict[str, Any]) -> None:
    """The page and, with the same numbers, report.json."""
    where = "" if out == Path("outputs") else f" --out {shlex.quote(figures.short(out, 300))}"
    options = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    html = Environment(loader=FileSystemLoader(HERE), **options)
    html.filters.update(percent=figures.percent, times=figures.times, title=figures.TITLES.get, shell=typed)
    text = html.get_template(template).render(**facts, **drawn, order=contents.ORDER, where=where)
    with atomic_write(folder / "index.html") as file:
        file.write(text.encode(errors="replace"))
    write_json(folder / "report.json", {"fingerprint": mark, **facts})


def typed(text: str) -> str:
    """A word as it's typed in a shell."""
    return shlex.quote(figures.short(text, 200))


def finished(out: Path, connection: duckdb.DuckDBPyConnection, run: str) -> dict[str, Any]:
    """What labelled both sides. NotYet where a side is not labelled, or not to the end."""
    labelled = estimate.labelling(connection, run)
    for folder, name in ((out / "shards", "the training images"), (out / "runs" / run, f"run {run}")):
        done = read_json(folder / "labels.json") or {}
        if "judged" not in done and done.get("skin"):  # of our own labelling
            raise estimate.NotYet(f"the labelling of {name} was not finished: run `fairface label --run {run}` again")
    return labelled


def inputs(out: Path, run: str) -> str:
    """A fingerprint of what the report is made from: sizes and times of the files, and the code."""
    files = [out / "shards" / name for name in ("images.parquet", "shards.json", *LABELS)]
    names = ("config.json", "steps.parquet", "samples.json", "samples.parquet", *LABELS)
    files += [out / "runs" / run / name for name in names]
    files += sorted((out / "detectors").glob("*/detection.parquet"))
    files += sorted((*(out / "shards").glob("*.tar"), *(out / "runs" / run / "samples").glob("*.tar")))
    states = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files if p.exists()]
    code = [
        hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in (HERE, sql.HERE)
        for path in sorted(folder.iterdir())
        if path.suffix in (".py", ".sql", ".j2")
    ]
    return fingerprint([run, states, code])


def check_manifest(run: str, config: dict[str, Any], shards: dict[str, Any], samples: dict[str, Any]) -> None:
    """FairfaceError where the labelled training images aren't those that the run, or what was sampled, was trained on."""
    trained, packed = (config.get("data") or {}).get("manifest"), shards.get("manifest")
    if trained and packed and trained != packed:
        raise FairfaceError(
            f"run {run} was trained on other shards than those that are there now: train again with "
            "`fairface train`, or pack the old data again with `fairface shards`"
        )
    if packed and samples.get("manifest", packed) != packed:
        raise FairfaceError(
            f"the samples of run {run} were drawn before it went on with other images: run "
            f"`fairface sample --run {run}`, then `fairface label --run {run}`"
        )


def draw(
    connection: duckdb.DuckDBPyConnection, out: Path, run: str, folder: Path, facts: dict[str, Any]
) -> dict[str, Any]:
    """Saves every figure into `folder` and returns them ready for the page."""

    def figure(made: Any, name: str, description: str) -> Markup:
        # text inside the SVG is escaped by matplotlib, the description by inline
        return Markup(figures.inline(figures.save(made, folder, name, bool(facts["drawn"])), description))

    rows = contents.shown(sql.ask(connection, "comparison", run=run).filter(pl.col("attribute") != "intersection_age"))
    panels, losses, ratios = {}, [], None
    for attribute in contents.ORDER if len(rows) else ():
        made, said = figures.comparison(rows.filter(attribute=attribute)), "shares of training and generated faces"
        panels[attribute] = figure(made, f"comparison-{attribute}", f"{figures.TITLES[attribute]}: {said}")
    if len(rows):
        ratios = figure(figures.ratios(rows), "ratios", "Generated over training share of every group")
    steps = sql.ask(connection, "loss_curves", run=run)
    lines = {"Losses": {"loss_d": "discriminator", "loss_g": "generator"}}
    lines["Discriminator's mean output"] = {"d_real": "real", "d_fake": "generated"}
    for title, columns in lines.items() if len(steps) else ():
        losses.append(figure(figures.curves(steps, columns, title), title.split("'")[0].lower(), title))
    return {"panels": panels, "losses": losses, "ratios": ratios, **pictures(connection, out, run, folder, facts)}


def pictures(
    connection: duckdb.DuckDBPyConnection, out: Path, run: str, folder: Path, facts: dict[str, Any]
) -> dict[str, Any]:
    """The faces, ready for the page: the first ones, those of every group, the most and least certain, the nearest."""
    first, counts = {}, {}
    for side in ("generated", "train"):
        images = faces.first(connection, out, run, side)
        counts[side] = len(images)
        for name, count in ((f"{side}_few", 24), (f"{side}_all", faces.FIRST)):
            first[name] = figures.sheet(images[:count]) if images else None
        if images:
            with atomic_write(folder / f"faces-{side}.png") as file:
                file.write(figures.grid(images))
    grouped = {}
    for attribute, names in faces.by_group(connection, out, run).items():
        grouped[attribute] = {
            group: {side: figures.sheet(images) if images else "" for side, images in sides.items()}
            for group, sides in names.items()
        }
        rows = [images for sides in names.values() for images in sides.values() if images]
        if rows:
            with atomic_write(folder / f"faces-{attribute}.png") as file:
                file.write(figures.grid([image for images in rows for image in images]))
    certain = [
        row | {"image": figures.sheet([row["image"]])} for row in faces.certain(connection, out, run, facts["certain"])
    ]
    near = faces.nearest(connection, out, run, facts["near"])
    for pair in near:
        pair |= {name: figures.sheet([pair[name]]) for name in ("image", "train_image")}
    about = {"pictures": first, "pictured": counts, "grouped": grouped}
    return about | {"certain_faces": certain, "near_faces": near}
