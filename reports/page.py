"""The report: every estimate of one run, on one page that opens anywhere and in one JSON file."""

import base64
import hashlib
import math
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

import sql
from reports import estimate, figures, groups
from shards import tar
from shards.files import LABELS, fingerprint, read_json, replacing, write_json

HERE = Path(__file__).parent
ORDER = ["gender", "skin_group", "age", "skin_tone", "intersection"]
WORDS = {"female": "women", "male": "men", "child": "children", "young": "young faces", "adult": "adults"}
WORDS |= {"middle": "middle-aged faces", "senior": "old faces"}
WORDS |= {group: f"{group}-skinned faces" for group in ("light", "medium", "dark")}
FACES = 48  # in each grid


def build(out: Path, run: str | None = None, force: bool = False) -> tuple[Path, bool]:
    """Writes the page, `report.json`, the estimates and the figures of a run, the newest when left out.

    Returns the page and whether it was built: where the inputs are as they were for the last one, it is left
    alone unless `force`. ValueError, naming the command to run, where a stage before this one is missing.
    """
    out = Path(out)
    connection, page = sql.connect(out), out / "report" / "index.html"
    run = estimate.choose_run(connection, out, run)
    mark, last = inputs(out, run), read_json(out / "report" / "report.json") or {}
    made = [out / "report" / name for name in ("index.html", *(f"{table}.parquet" for table in estimate.TABLES))]
    if not force and all(path.exists() for path in made) and last.get("fingerprint") == mark:
        return page, False
    labelled = estimate.labelling(connection, run)
    config = read_json(out / "runs" / run / "config.json")
    shards = read_json(out / "shards" / "shards.json") or {}
    samples = read_json(out / "runs" / run / "samples.json") or {}
    check_manifest(run, config, shards, samples)
    for folder, name in ((out / "shards", "the training images"), (out / "runs" / run, f"run {run}")):
        done = read_json(folder / "labels.json") or {}
        if "judged" not in done and done.get("skin"):  # of our own labelling
            raise ValueError(f"the labelling of {name} was not finished: run `fairface label --run {run}` again")
    tables = estimate.write(out, connection, run)
    connection = sql.connect(out)  # the estimates are there now
    facts = gather(connection, run, config, shards, labelled, tables, samples)
    drawn = draw(connection, out, run)
    options = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    html = Environment(loader=FileSystemLoader(HERE), **options)
    html.filters.update(percent=figures.percent, times=figures.times, title=figures.TITLES.get)
    text = html.get_template("page.html.j2").render(**facts, **drawn, order=ORDER)
    with replacing(page) as file:
        file.write(text.encode())
    write_json(out / "report" / "report.json", {"fingerprint": mark, **facts})
    return page, True


def inputs(out: Path, run: str) -> str:
    """A fingerprint of what the report is made from: sizes and times of the files, and the code."""
    files = [out / "shards" / name for name in ("images.parquet", "shards.json", *LABELS)]
    names = ("config.json", "steps.parquet", "samples.json", "samples.parquet", *LABELS)
    files += [out / "runs" / run / name for name in names]
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
    labelled: dict[str, Any],
    tables: dict[str, pl.DataFrame],
    samples: dict[str, Any],
) -> dict[str, Any]:
    """Everything the page says, as plain values: what `report.json` holds."""
    asked = requested(config, samples)
    rows = sql.ask(connection, "comparison", run=run)
    data = config.get("data") or {}
    annotated = len(tables["confusion"]) > 0
    return {
        "run": run,
        "drawn": bool(data.get("drawn")),
        "built": datetime.now(UTC).isoformat(timespec="seconds"),
        "verdict": sentences(shown(rows), foreign(config, labelled), bool(asked)),
        "summary": dict(rows["verdict"].value_counts().iter_rows()),
        "warnings": warnings(config, labelled, annotated) + asked,
        "shown": weighted(config),
        "annotated": annotated,
        "labelling": labelled,
        "estimates": rows.to_dicts(),
        "readings": sql.ask(connection, "readings", run=run).to_dicts(),
        "distances": sql.ask(connection, "distances", run=run).to_dicts(),
        "quality": sql.ask(connection, "quality", run=run).to_dicts(),
        "labellers": judged(connection, tables["confusion"]).to_dicts(),
        "counting": groups.counting(connection, run),
        "confusion": {attribute: matrix(connection, attribute) for attribute in ORDER[:4] if annotated},
        "throughput": sql.ask(connection, "throughput", run=run).row(0, named=True),
        "samples": sql.ask(connection, "sampling", run=run).to_dicts(),
        "config": config,
        "shards": shards,
        "composition": sql.ask(connection, "composition").to_dicts(),
        "rejects": sql.ask(connection, "rejects").to_dicts(),
        "versions": {name: version(name) for name in ("duckdb", "polars", "numpy", "matplotlib")},
    }


def foreign(config: dict[str, Any], labelled: dict[str, Any]) -> bool:
    """Whether real faces were labelled by the labeller made for drawn ones."""
    drawn = bool((config.get("data") or {}).get("drawn"))
    return not drawn and str(labelled["labeller"]).startswith("drawn-faces")


def judged(connection: duckdb.DuckDBPyConnection, confusion: pl.DataFrame) -> pl.DataFrame:
    """How often each labeller is right: on images that none was fitted to, or on all where no probe could be fitted."""
    table = sql.ask(connection, "labellers")
    return table if len(table) else estimate.accuracy(confusion)


def warnings(config: dict[str, Any], labelled: dict[str, Any], annotated: bool) -> list[str]:
    """What a reader must know before believing a number, the gravest first."""
    found = []
    if foreign(config, labelled):
        found.append(
            "These labels are not to be trusted: the faces are real, but the labeller was made for drawn "
            "faces. Label both sides again with a model made for photographs (fairface label --help)."
        )
    if len(labelled["sizes"]) > 1:
        sizes = " and ".join(map(str, labelled["sizes"]))
        found.append(f"The two sides were not labelled at one size ({sizes} pixels): blur alone may move the labels.")
    if not annotated:
        found.append(
            "The training images have no annotations: the reference is what the labeller says of them, and "
            "how often it errs is unknown."
        )
    if before := config.get("data_before"):
        roots = ", ".join(str(data.get("root")) for data in before)
        found.append(
            f"The run began on other images ({roots}) and went on with those in the shards now, which alone this page "
            "calls training: its ratios are not to what the generator was shown."
        )
    if config.get("status") != "finished":
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


def sentences(rows: pl.DataFrame, foreign: bool = False, asked_for: bool = False) -> list[str]:
    """The verdict as a person would say it, a sentence or two for each thing that people ask about first.

    Of labels that mean nothing (`foreign`) nothing is claimed; what was `asked` for is not blamed on the generator.
    """
    if foreign:
        return ["No answer: these labels say nothing about real faces. They are shown as they are."]
    asked = {"gender": ("gender balance", "genders"), "skin_group": ("balance of skin groups", "skin groups")}
    asked["age"] = ("balance of ages", "ages")
    said = [clause(*names, rows.filter(attribute=attribute)) for attribute, names in asked.items()]
    rare, total = (rows["verdict"] == "inconclusive").sum(), len(rows)
    last = f"{rare} of {total} groups {'is' if rare == 1 else 'are'} too rare to tell." if rare else ""
    opening = answer(rows)
    if asked_for:
        moved = rows["verdict"].is_in(["amplified", "reduced"]).sum()
        opening = f"It was asked to: {moved} of {len(rows)} groups are more or less frequent than it was shown them."
    return [opening, *said, last or f"None of {total} groups is too rare to tell."]


def answer(rows: pl.DataFrame) -> str:
    """The question answered in one sentence; "no" only of shifts that chance among so many groups does not explain."""
    moved = (rows["shifted"] & rows["verdict"].is_in(["amplified", "reduced"])).sum()
    if moved:
        return f"No: it drew {moved} of {len(rows)} groups more or less often than it was shown them."
    if (rows["verdict"] == "preserved").all():
        return "Yes: it drew every group about as often as it was shown it."
    if (rows["verdict"] == "inconclusive").all():
        return "It can not be told: there are too few samples, or labels that say too little."
    if rows["verdict"].is_in(["amplified", "reduced"]).any():
        return "It can not be told: what looks moved may be chance among so many groups."
    asked = rows.filter(pl.col("attribute").is_in(["gender", "skin_group"]))
    if len(asked) and (asked["verdict"] == "preserved").all():
        return "Yes for gender and skin group, as far as these samples can tell; of other groups there are too few."
    return "It can not be told: for most groups there are too few samples, or the labels disagree."


def clause(name: str, plural: str, rows: pl.DataFrame) -> str:
    """One sentence on one attribute, from its rows of `estimates`."""
    groups = rows.to_dicts()
    moved = [row for row in groups if row["verdict"] in ("amplified", "reduced")]
    unclear = [word(row) for row in groups if row["verdict"] == "inconclusive"]
    if moved:
        moved.sort(key=size_of, reverse=True)
        return f"Of {plural}, it drew {listed([told(row) for row in moved[:3]])}."
    if groups and all(row.get("why") == "no labels" for row in groups):
        return f"The {name} is not known: no face was labelled for it."
    if len(unclear) == len(groups):
        return f"The samples are too few to tell whether it kept the {name}."
    if unclear:
        kept = [f"{word(row)} {shares(row)}" for row in groups if row["verdict"] == "preserved"]
        return f"Of {plural}, it kept {listed(kept)}; there are too few {listed(unclear)} to tell."
    example = groups[0] if plural == "genders" else max(groups, key=lambda row: row["share"] or 0)
    said = f"{figures.percent(example['share'])} {word(example)}, training {figures.percent(example['reference'])}"
    return f"It kept the {name} of its training data ({said})."


def size_of(row: dict[str, Any]) -> float:
    """How far a row's ratio is from 1, on a log scale; none and 0 count as a hundredfold change."""
    return abs(math.log(max(row["ratio"] or 0.01, 0.01)))


def word(row: dict[str, Any]) -> str:
    return WORDS.get(row["group"], figures.short(row["group"], 40))


def shares(row: dict[str, Any]) -> str:
    return f"({figures.percent(row['share'])}, training {figures.percent(row['reference'])})"


def told(row: dict[str, Any]) -> str:
    if not row["count"]:
        return f"no {word(row)} at all {shares(row)}"
    if row["ratio"] is None:
        return f"{word(row)}, whom its training data lack {shares(row)}"
    return f"{figures.times(row['ratio']).removeprefix('×')} times as many {word(row)} {shares(row)}"


def listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def matrix(connection: duckdb.DuckDBPyConnection, attribute: str) -> dict[str, Any]:
    """An attribute's confusion matrix in shares: {"labels", "rows": [{"annotated", "n", "shares"}]}."""
    table = sql.ask(connection, "confusion", attribute=attribute)
    asked = 'select "group" from vocabulary where attribute = $attribute order by rank'
    known = sql.query(connection, asked, {"attribute": attribute})["group"].to_list()
    known += sorted({*table["annotated"], *table["labelled"]} - set(known))
    cells = {(row["annotated"], row["labelled"]): row for row in table.to_dicts()}
    rows = []
    for annotated in known:
        counts = [cells.get((annotated, labelled), {}).get("count", 0) for labelled in known]
        portions = [count / sum(counts) if sum(counts) else None for count in counts]
        rows.append({"annotated": annotated, "n": sum(counts), "shares": portions})
    return {"labels": known, "rows": rows}


def draw(connection: duckdb.DuckDBPyConnection, out: Path, run: str) -> dict[str, Any]:
    """Saves every figure into `report/` and returns them ready for the page."""
    folder, rows = out / "report", shown(sql.ask(connection, "comparison", run=run))

    def figure(made: Any, name: str, description: str) -> Markup:
        # text inside the SVG is escaped by matplotlib, the description by inline
        return Markup(figures.inline(figures.save(made, folder, name), description))

    panels = {}
    for a in ORDER:
        made, said = figures.comparison(rows.filter(attribute=a)), "shares of training and generated faces"
        panels[a] = figure(made, f"comparison-{a}", f"{figures.TITLES[a]}: {said}")
    steps, losses = sql.ask(connection, "loss_curves", run=run), []
    lines = {"Losses": {"loss_d": "discriminator", "loss_g": "generator"}}
    lines["Discriminator's mean output"] = {"d_real": "real", "d_fake": "generated"}
    for title, columns in lines.items() if len(steps) else ():
        losses.append(figure(figures.curves(steps, columns, title), title.split("'")[0].lower(), title))
    pictures, counts = {}, {}
    for side in ("generated", "train"):
        images = faces(connection, out, run, side)
        counts[side] = len(images)
        for name, count in ((f"{side}_few", 24), (f"{side}_all", FACES)):
            png = figures.grid(images[:count]) if images else b""
            pictures[name] = "data:image/png;base64," + base64.b64encode(png).decode() if png else None
        if images:  # the last one, with all of them
            with replacing(folder / f"faces-{side}.png") as file:
                file.write(png)
    ratios = figure(figures.ratios(rows), "ratios", "Generated over training share of every group")
    return {"panels": panels, "losses": losses, "pictures": pictures, "pictured": counts, "ratios": ratios}


def faces(connection: duckdb.DuckDBPyConnection, out: Path, run: str, side: str) -> list[bytes]:
    """The first images of a side, unchosen: samples by index, training images as shuffled; [] where gone."""
    if side == "generated":
        asked, folder = "from samples where run = $run order by seed, index", out / "runs" / run / "samples"
    else:
        asked, folder = "from images where status = 'packed' and $run <> '' order by key", out / "shards"
    found = sql.query(connection, f"select shard, key {asked} limit {FACES}", {"run": run})
    images: dict[str, bytes] = {}
    for shard, keys in found.group_by("shard", maintain_order=True).agg("key").iter_rows():
        try:
            images |= tar.read(folder, shard, keys)
        except (OSError, KeyError, ValueError, TypeError):
            return []  # a shard that was moved away costs the picture, not the report
    return [images[key] for key in found["key"]]
