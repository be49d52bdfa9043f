"""A small workspace whose shares are counted by hand."""

import polars as pl
import pytest

from shards.documents import DataSource, RunConfig, write_document
from shards.workspace import Workspace
from tests.reports.fake_workspace import labels_document, shards_document

PEOPLE = {  # key: gender, age, skin tone
    "0": ("female", "young", 1),
    "1": ("female", "adult", 5),
    "2": ("male", "adult", 5),
    "3": ("male", None, 9),
}


def people_frame(people, **columns):
    """One row for each person, with constant columns added."""
    rows = [{"key": k, "gender": g, "age": a, "skin_tone": t} for k, (g, a, t) in people.items()]
    return pl.DataFrame(rows).with_columns(*(pl.lit(v).alias(k) for k, v in columns.items()))


@pytest.fixture
def out(tmp_path):
    """Two runs, four packed images, one rejected image; expected shares in the tests are counted from PEOPLE."""
    shards = tmp_path / "shards"
    shards.mkdir()
    packed = people_frame(PEOPLE, status="packed", shard="a.tar", path="x.jpg", family="GANs", subset="S")
    packed = packed.with_columns(skin_group=pl.Series(["light", "medium", "medium", None]))
    rejected = packed.head(1).with_columns(key=pl.lit("r"), status=pl.lit("rejected"), reason=pl.lit("empty"))
    pl.concat([packed, rejected], how="diagonal").write_parquet(shards / "images.parquet")
    about = {"method": "clip", "labeller": "l@1", "size": 64}
    people_frame(PEOPLE, source="train", **about).write_parquet(shards / "labels.parquet")
    for day, run in enumerate(("old", "new"), 1):
        folder = tmp_path / "runs" / run
        folder.mkdir(parents=True)
        write_document(folder / "config.json", run_config(run, day))
        people = {k: PEOPLE[k] for k in ("0", "1")} if run == "new" else PEOPLE
        people_frame(people, source="generated", run=run, **about).write_parquet(folder / "labels.parquet")
        steps = {"step": list(range(1, 11)), "loss_d": [float(day)] * 10}
        pl.DataFrame(steps).write_parquet(folder / "steps.parquet")
        write_document(folder / "labels.json", labels_document("generated", run, images_hash=None))
    write_document(shards / "shards.json", shards_document(images=4))
    write_document(shards / "labels.json", labels_document("train"))
    return tmp_path


def run_config(run, day):
    """config.json of a run started on a day of January."""
    return RunConfig(
        name=run,
        status="finished",
        started=f"2026-01-0{day}",
        options={"steps": 10, "seed": day, "ema": 0.99},
        data=DataSource(manifest="m", images=4, synthetic=True, root="data", annotated=3),
    )


@pytest.fixture
def workspace(out):
    """The workspace at `out`."""
    return Workspace(out)
