"""Several runs side by side: what each drew, and how they differ from the first one."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
from markupsafe import Markup

import sql
from reports import faces, figures
from shards.atomic_io import atomic_write

EVENLY = {"gender": "genders", "skin_group": "skin groups", "age": "ages"}


def gather(connection: duckdb.DuckDBPyConnection, facts: list[dict[str, Any]]) -> dict[str, Any]:
    """What the page of several runs says, as plain values, from what the page of each one says."""
    names = [fact["run"] for fact in facts]
    told = [fact for fact in facts if fact["labelling"]]
    used = estimates(told)
    distances = {fact["run"]: distances_of(fact, used) for fact in told}
    pairs = {
        fact["run"]: sql.ask(connection, "difference", run=told[0]["run"], other=fact["run"]).to_dicts()
        for fact in told[1:]
    }
    return {
        "runs": names,
        "first": told[0]["run"] if told else None,
        "drawn": None if all(fact["drawn"] is None for fact in facts) else any(fact["drawn"] for fact in facts),
        "real": any(fact["drawn"] is False for fact in facts),
        "estimates": used,
        "built": datetime.now(UTC).isoformat(timespec="seconds"),
        "findings": [said(told[0]["run"], name, rows, distances) for name, rows in pairs.items() if rows],
        "differences": pairs,
        "distances": distances,
        "pages": facts,
    }


def estimates(facts: list[dict[str, Any]]) -> dict[str, str]:
    """attribute -> the estimate that all runs are compared by: corrected where one uses it and all have it, else raw.

    It is the choice of question `difference`, for all runs at once.
    """
    found: dict[str, str] = {}
    for attribute in figures.TITLES:
        rows = [row for fact in facts for row in fact["estimates"] if row["attribute"] == attribute]
        raw = all(row["best"] == "raw" for row in rows) or any(row["corrected"] is None for row in rows)
        found[attribute] = "raw" if raw else "corrected"
    return found


def alike(rows: pl.DataFrame, estimate: str) -> pl.DataFrame:
    """Rows of `estimates` with best_share and best_reference those of that estimate, whichever a run's page uses."""
    own = pl.col("best") == estimate
    name = "share" if estimate == "raw" else "corrected"
    there = "reference" if estimate == "raw" else "annotated"
    shares = [
        pl.when(own).then(f"best_share{end}").otherwise(f"{name}{end}").alias(f"best_share{end}")
        for end in ("", "_low", "_high")
    ]
    return rows.with_columns(*shares, best_reference=pl.when(own).then("best_reference").otherwise(there))


def distances_of(fact: dict[str, Any], used: dict[str, str]) -> dict[str, dict[str, dict[str, Any]]]:
    """against -> attribute -> the row of total variation of the estimate that all runs are compared by."""
    found: dict[str, dict[str, dict[str, Any]]] = {"reference": {}, "uniform": {}}
    for row in fact["distances"]:
        if row["estimate"] == used[row["attribute"]] and row["measure"] == "total_variation":
            found[row["against"]][row["attribute"]] = row
    return found


def said(first: str, other: str, rows: list[dict[str, Any]], distances: dict[str, Any]) -> list[str]:
    """What two runs' difference comes to, in sentences: groups drawn more or less often, and which is more even."""
    rows = [row for row in rows if row["attribute"] != "intersection_age"]
    moved = [row for row in rows if row["finding"] != "inconclusive"]
    found = [
        f"{figures.short(other, 40)} drew {len(moved)} of {len(rows)} groups more or less often than "
        f"{figures.short(first, 40)} (of so many, about {round(len(rows) / 20)} may seem so by chance)."
    ]
    for attribute, plural in EVENLY.items():
        a, b = (distances[run]["uniform"].get(attribute) for run in (first, other))
        if a and b:
            low, high = apart(a, b)
            how = "nearer to" if high < 0 else "farther from" if low > 0 else None
            ends = f"total variation {b['value']:.3f}; {figures.short(first, 40)} {a['value']:.3f}"
            if how:
                found.append(f"It is {how} equal {plural} ({ends}).")
            else:
                found.append(f"Which of them is nearer to equal {plural} can not be told ({ends}).")
    return found


def apart(a: dict[str, Any], b: dict[str, Any]) -> tuple[float, float]:
    """A 95 % interval of b - a, from each one's own (Newcombe, Stat. Med. 17 (1998) 873-890, method 10)."""
    d = b["value"] - a["value"]
    low = d - np.hypot(b["value"] - b["low"], a["high"] - a["value"])
    return float(low), float(d + np.hypot(b["high"] - b["value"], a["value"] - a["low"]))


def draw(
    connection: duckdb.DuckDBPyConnection, out: Path, said: dict[str, Any]
) -> dict[str, dict[str, Markup | str | None]]:
    """The figures of the page of several runs, saved into `report/`, and each run's first faces."""
    folder, facts = out / "report", said["pages"]
    told = [fact["run"] for fact in facts if fact["labelling"]]
    rows = pl.concat([sql.ask(connection, "comparison", run=run) for run in told]) if told else pl.DataFrame()
    panels: dict[str, Markup | str | None] = {}
    for attribute, title in figures.TITLES.items():
        part = rows.filter(attribute=attribute) if len(rows) else rows
        if len(part) and attribute != "intersection_age":
            made = figures.side_by_side(alike(part, said["estimates"][attribute]), told, said["estimates"][attribute])
            text = f"{title}: shares that each run drew"
            svg = figures.save(made, folder, f"runs-{attribute}", bool(said["drawn"]))
            panels[attribute] = Markup(figures.inline(svg, text))
    pictures: dict[str, Markup | str | None] = {}
    for number, fact in enumerate(facts, 1):
        images = faces.first(connection, out, fact["run"], "generated")[:24]
        pictures[fact["run"]] = figures.sheet(images) if images else None
        if images:
            with atomic_write(folder / f"faces-run-{number}.png") as file:
                file.write(figures.grid(images))
    return {"panels": panels, "pictures": pictures}
