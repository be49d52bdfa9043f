"""What the page of a run says, as plain values: numbers, sentences, and what to know before believing them."""

from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import duckdb
import polars as pl

import sql
from reports import estimate, faces, figures, groups, verdict

ORDER = ["gender", "skin_group", "age", "skin_tone", "intersection"]
NO_ANSWER = "Not answered yet."


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
        "judged_by": sql.select(connection, JUDGED_BY).to_dicts(),
        "robustness": sql.ask(connection, "robustness").to_dicts(),
        "detected": sql.ask(connection, "detected", run=run).to_dicts(),
        "versions": {name: version(name) for name in ("duckdb", "polars", "numpy", "matplotlib")},
    }


JUDGED_BY = """-- the faces that each detector was judged by
select detector, count(*) filter (target = 'real') as reals, count(*) filter (target = 'fake') as fakes,
    max(run) as run, max(grouped_by) as grouped_by
from judged where change = 'none' group by detector order by detector"""


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
