"""The report: every estimate of one run, on one page that opens anywhere and in one JSON file."""

import hashlib
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

import sql
from reports import comparison, estimate, faces, figures, groups, verdict
from shards.files import LABELS, alone, fingerprint, read_json, replacing, whole_parquet, write_json

HERE = Path(__file__).parent
ORDER = ["gender", "skin_group", "age", "skin_tone", "intersection"]
FIGURES = ("comparison-*", "runs-*", "ratios.*", "losses.*", "discriminator.*", "faces-*.png")  # what `draw` saves
NO_ANSWER = "Not answered yet."


def build(out: Path, runs: Sequence[str] = (), force: bool = False) -> tuple[Path, bool]:
    """Writes the page, `report.json`, the estimates and the figures of a run, the newest when none is named.

    Of several runs each has its own page below `report/runs/`, and the page that is returned has them side by side.
    Returns it and whether it was built: where the inputs are as they were for the last one, it is left alone unless
    `force`. What a run lacks so far is said on its page, with the command to run; ValueError where there is none to
    make a page of, or where labels can't be compared.
    """
    out = Path(out)
    with alone(out / "report", "writing"):
        return built(out, runs, force)


def built(out: Path, runs: Sequence[str], force: bool) -> tuple[Path, bool]:
    """As `build` says, by the only process that is at it."""
    connection = sql.connect(out)
    names = [estimate.choose_run(connection, out, run) for run in runs or (None,)]
    if len(names) == 1:
        return single(out, names[0], out / "report", force)
    if len(set(names)) < len(names):
        raise ValueError("--run names a run twice")
    if len(names) > len(figures.RUNS):
        raise ValueError(f"{len(names)} runs side by side are too many to read: name {len(figures.RUNS)} at most")
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
    facts = gather(connection, run, config, shards, labelled, samples, labels, missing)
    clear(folder)
    write(out, folder, "page.html.j2", mark, facts, draw(connection, out, run, folder, facts))
    return folder / "index.html", True


def estimated(out: Path, connection: duckdb.DuckDBPyConnection, run: str, folder: Path) -> bool:
    """Whether the tables hold what the page in `folder` says of a run: they are written for others, too."""
    if not all(whole_parquet(out / "report" / f"{name}.parquet") for name in estimate.TABLES):
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
    text = html.get_template(template).render(**facts, **drawn, order=ORDER, where=where)
    with replacing(folder / "index.html") as file:
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
    """ValueError where the labelled training images aren't those that the run, or what was sampled, was trained on."""
    trained, packed = (config.get("data") or {}).get("manifest"), shards.get("manifest")
    if trained and packed and trained != packed:
        raise ValueError(
            f"run {run} was trained on other shards than those that are there now: train again with "
            "`fairface train`, or pack the old data again with `fairface shards`"
        )
    if packed and samples.get("manifest", packed) != packed:
        raise ValueError(
            f"the samples of run {run} were drawn before it went on with other images: run "
            f"`fairface sample --run {run}`, then `fairface label --run {run}`"
        )


def gather(
    connection: duckdb.DuckDBPyConnection,
    run: str,
    config: dict[str, Any],
    shards: dict[str, Any],
    labelled: dict[str, Any] | None,
    samples: dict[str, Any],
    labels: dict[str, Any],
    missing: str | None,
) -> dict[str, Any]:
    """Everything the page says, as plain values: what `report.json` holds."""
    asked = requested(config, samples)
    rows, matrices = sql.ask(connection, "comparison", run=run), confusions(connection) if labelled else {}
    told = shown(rows.filter(pl.col("attribute") != "intersection_age"))
    judged_by = judged(connection) if labelled else pl.DataFrame()
    return {
        "run": run,
        "drawn": origin(config, shards),
        "built": datetime.now(UTC).isoformat(timespec="seconds"),
        "missing": missing,
        "verdict": verdict.sentences(told, foreign(config, labelled), bool(asked)) if labelled else [NO_ANSWER],
        "summary": dict(told["verdict"].value_counts().iter_rows()),
        "warnings": warnings(config, labelled, bool(matrices)) + asked,
        "shown": weighted(config),
        "annotated": bool(matrices),
        "labelling": labelled,
        "estimates": rows.to_dicts(),
        "readings": sql.ask(connection, "readings", run=run).to_dicts(),
        "distances": sql.ask(connection, "distances", run=run).to_dicts(),
        "quality": sql.ask(connection, "quality", run=run).to_dicts(),
        "labellers": judged_by.to_dicts(),
        "counting": groups.counting(connection, run),
        "confusion": matrices,
        "known": {} if labelled else known(connection, run),
        "throughput": sql.ask(connection, "throughput", run=run).row(0, named=True),
        "samples": sql.ask(connection, "sampling", run=run).to_dicts(),
        "sampled": {key: samples.get(key) for key in ("sha256", "weights")},
        "commands": [done.get("command") for done in (config, samples, labels) if done.get("command")],
        "config": config,
        "shards": shards,
        "composition": sql.ask(connection, "composition").to_dicts(),
        "rejects": sql.ask(connection, "rejects").to_dicts(),
        "certain": [
            row | {"attribute": attribute, "order": order}
            for attribute in ("gender", "age", "skin_tone")
            for order in ("most", "least")
            for row in sql.ask(
                connection, "confidence", attribute=attribute, order=order, run=run, limit=faces.CERTAIN
            ).to_dicts()
        ],
        "near": sql.ask(connection, "neighbours", run=run, limit=faces.NEAREST).to_dicts(),
        "real": sql.ask(connection, "neighbours", source="train", run=run, limit=1).to_dicts(),
        "detection": sql.ask(connection, "detection").to_dicts(),
        "versions": {name: version(name) for name in ("duckdb", "polars", "numpy", "matplotlib")},
    }


def origin(config: dict[str, Any], shards: dict[str, Any]) -> bool | None:
    """Whether the faces are drawn ones; None where neither the run nor the shards say so."""
    said = [about["drawn"] for about in (config.get("data") or {}, shards) if about.get("drawn") is not None]
    return any(said) if said else None


def known(connection: duckdb.DuckDBPyConnection, run: str) -> dict[str, list[dict[str, Any]]]:
    """What there is to say of a run without estimates: counts of either side, of those attributes that have any."""
    sides = {attribute: sql.ask(connection, "sides", attribute=attribute, run=run) for attribute in ORDER}
    counted = ("train", "generated", "annotated")
    return {
        attribute: rows.to_dicts()
        for attribute, rows in sides.items()
        if rows.select(counted).sum().sum_horizontal()[0]
    }


def confusions(connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """The confusion matrix of every attribute that images are annotated with."""
    found = {attribute: matrix(connection, attribute) for attribute in ORDER}
    return {attribute: table for attribute, table in found.items() if any(row["n"] for row in table["rows"])}


def foreign(config: dict[str, Any], labelled: dict[str, Any] | None) -> bool:
    """Whether real faces were labelled by the labeller made for drawn ones."""
    drawn = bool((config.get("data") or {}).get("drawn"))
    return bool(labelled) and not drawn and str(labelled["labeller"]).startswith("drawn-faces")


def judged(connection: duckdb.DuckDBPyConnection) -> pl.DataFrame:
    """How often each labeller is right: on images that none was fitted to, or on all where no probe could be fitted."""
    table = sql.ask(connection, "labellers")
    return table if len(table) else estimate.accuracy(sql.select(connection, "from confusion"))


def warnings(config: dict[str, Any], labelled: dict[str, Any] | None, annotated: bool) -> list[str]:
    """What a reader must know before believing a number, the gravest first."""
    found = []
    if foreign(config, labelled):
        found.append(
            "These labels are not to be trusted: the faces are real, but the labeller was made for drawn "
            "faces. Label both sides again with a model made for photographs (fairface label --help)."
        )
    if labelled and len(labelled["sizes"]) > 1:
        sizes = " and ".join(map(str, labelled["sizes"]))
        found.append(f"The two sides were not labelled at one size ({sizes} pixels): blur alone may move the labels.")
    if labelled and not annotated:
        found.append(
            "The training images have no annotations: the reference is what the labeller says of them, and "
            "how often it errs is unknown."
        )
    if before := config.get("data_before"):
        roots = ", ".join(figures.short(data.get("root"), 200) for data in before)
        found.append(
            f"The run began on other images ({roots}) and went on with those in the shards now, which alone this page "
            "calls training: its ratios are not to what the generator was shown."
        )
    if config.get("imported"):
        found.append(
            "The labels were made elsewhere: of the generator, and of what it was trained on, nothing is known."
        )
    elif config.get("status") != "finished":
        found.append(f"The training run is {config.get('status') or 'of unknown state'}, not finished.")
    return found


def shown(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of `estimates` with the better estimate of either side in place of the raw one."""
    names = ("share", "share_low", "share_high", "reference", "reference_low", "reference_high", "reference_n")
    return rows.with_columns(pl.col(f"best_{name}").alias(name) for name in names)


def weighted(config: dict[str, Any]) -> str | None:
    """How the generator was shown the packed images, where that was not as they are."""
    options = config.get("options") or {}
    if (balance := options.get("balance", "natural")) != "natural":
        how = "equally often" if balance == "uniform" else "in shares of their own"
        return f"the groups of {options.get('balance_by')} {how}"
    return f"only images whose {options['conditional']} is annotated" if options.get("conditional") else None


def requested(config: dict[str, Any], samples: dict[str, Any]) -> list[str]:
    """Why the samples are not what the generator draws by itself."""
    found = []
    shares = samples.get("shares")
    if shares and shares != config.get("classes"):
        asked = ", ".join(group for group, share in shares.items() if share)
        found.append(f"The samples were asked to be {asked}: their shares are the request's, not the generator's.")
    if cut := samples.get("truncation"):
        found.append(
            f"The samples' latents were cut off at {cut:g}: they are nearer to the mean than what it draws by itself."
        )
    return found


def matrix(connection: duckdb.DuckDBPyConnection, attribute: str) -> dict[str, Any]:
    """An attribute's confusion matrix in shares: {"labels", "rows": [{"annotated", "n", "shares"}]}."""
    table = sql.ask(connection, "confusion", attribute=attribute)
    asked = 'select "group" from vocabulary where attribute = $attribute order by rank'
    known = sql.select(connection, asked, {"attribute": attribute})["group"].to_list()
    known += sorted({*table["annotated"], *table["labelled"]} - set(known))
    cells = {(row["annotated"], row["labelled"]): row for row in table.to_dicts()}
    rows = []
    for annotated in known:
        counts = [cells.get((annotated, labelled), {}).get("count", 0) for labelled in known]
        portions = [count / sum(counts) if sum(counts) else None for count in counts]
        rows.append({"annotated": annotated, "n": sum(counts), "shares": portions})
    return {"labels": known, "rows": rows}


def draw(
    connection: duckdb.DuckDBPyConnection, out: Path, run: str, folder: Path, facts: dict[str, Any]
) -> dict[str, Any]:
    """Saves every figure into `folder` and returns them ready for the page."""

    def figure(made: Any, name: str, description: str) -> Markup:
        # text inside the SVG is escaped by matplotlib, the description by inline
        return Markup(figures.inline(figures.save(made, folder, name, bool(facts["drawn"])), description))

    rows = shown(sql.ask(connection, "comparison", run=run).filter(pl.col("attribute") != "intersection_age"))
    panels, losses, ratios = {}, [], None
    for attribute in ORDER if len(rows) else ():
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
            with replacing(folder / f"faces-{side}.png") as file:
                file.write(figures.grid(images))
    grouped = {}
    for attribute, names in faces.by_group(connection, out, run).items():
        grouped[attribute] = {
            group: {side: figures.sheet(images) if images else "" for side, images in sides.items()}
            for group, sides in names.items()
        }
        rows = [images for sides in names.values() for images in sides.values() if images]
        if rows:
            with replacing(folder / f"faces-{attribute}.png") as file:
                file.write(figures.grid([image for images in rows for image in images]))
    certain = [
        row | {"image": figures.sheet([row["image"]])} for row in faces.certain(connection, out, run, facts["certain"])
    ]
    near = faces.nearest(connection, out, run, facts["near"])
    for pair in near:
        pair |= {name: figures.sheet([pair[name]]) for name in ("image", "train_image")}
    about = {"pictures": first, "pictured": counts, "grouped": grouped}
    return about | {"certain_faces": certain, "near_faces": near}
