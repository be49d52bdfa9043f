"""The tables of estimates: their rows, their references, corrections, selected methods and quality."""

import numpy as np
import polars as pl
import pytest

import sql
from reports.estimation import distances
from reports.estimation.estimates import labeller_accuracy, write_estimates
from reports.estimation.labelled_sides import check_labels
from shards.attributes import built_in_attributes
from shards.documents import write_document
from shards.errors import FairfaceError
from shards.workspace import Workspace
from tests.reports.fake_workspace import build, edit_config, labels_document, page_text, replace_table


@pytest.fixture(autouse=True)
def few_replicates(monkeypatch):
    """Distances are tested in test_distances.py; with all their replicates they take most of the time."""
    monkeypatch.setattr(distances, "REPLICATES", 20)
    monkeypatch.setattr(distances, "CORRECTED_REPLICATES", 10)


def estimate(out, run="first"):
    """Write the estimates of a run below `out` and return its tables."""
    workspace = Workspace(out)
    return write_estimates(workspace, sql.connect(workspace), run=run)


def gender_rows(out):
    """The rows of `estimates` for gender."""
    return estimate(out)["estimates"].filter(attribute="gender")


def mislabel_women(out, women):
    """Label a quarter of the women as men, on both sides; `women` of the 400 samples are women."""
    generator = np.random.default_rng(0)
    images = pl.read_parquet(out / "shards" / "images.parquet")
    truth = {
        out / "shards" / "labels.parquet": images["gender"].to_numpy(),
        out / "runs" / "first" / "labels.parquet": generator.permutation(["female"] * women + ["male"] * (400 - women)),
    }
    for path, genders in truth.items():
        is_wrong = (genders == "female") & (generator.random(len(genders)) < 0.25)
        labels = pl.Series(np.where(is_wrong, "male", genders))
        replace_table(path, pl.read_parquet(path).with_columns(gender=labels))
    return out


def test_every_class_has_a_row_and_shares_sum_to_1(world):
    out = world()
    tables = estimate(out)
    rows = tables["estimates"]
    assert rows.group_by("attribute").len().sort("len")["len"].to_list() == [2, 3, 5, 6, 10, 30]
    sums = rows.group_by("attribute").agg(pl.col("share", "reference", "annotated").sum())
    assert np.allclose(sums.select("share", "reference", "annotated"), 1)
    is_inside = (pl.col("share_low") <= pl.col("share")) & (pl.col("share") <= pl.col("share_high"))
    assert rows.select(is_inside).to_series().all()
    assert set(tables["confusion"].filter(pl.col("annotated") != pl.col("labelled"))["count"]) == set()
    assert set(labeller_accuracy(tables["confusion"])["balanced_accuracy"]) == {1.0}
    best = rows.select("best_share", "best_reference").to_numpy()
    assert np.allclose(best, rows.select("share", "reference").to_numpy(), atol=1e-3)  # there are no errors to correct
    used = tables["method_estimates"].filter("used").select("attribute", "group", "share")
    assert used.rows() == rows.select("attribute", "group", "best_share").rows()
    assert sql.ask(sql.connect(Workspace(out)), "comparison").height == 56
    assert not list((out / "report").glob(".*"))


def test_accuracy_by_hand():
    cells = [("young", "young", 90), ("young", "adult", 10), ("adult", "adult", 5), ("adult", "young", 5)]
    confusion = pl.DataFrame(
        [{"method": "clip", "attribute": "age", "annotated": a, "labelled": b, "count": c} for a, b, c in cells]
    )
    row = labeller_accuracy(confusion).row(0, named=True)
    assert (row["n"], row["accuracy"], row["balanced_accuracy"]) == pytest.approx((110, 95 / 110, 0.7))


def test_images_without_annotations_have_null_annotated_shares(world):
    tables = estimate(world(annotated=False))
    assert tables["estimates"]["annotated"].null_count() == 56
    assert tables["confusion"].is_empty()


def test_the_tables_keep_other_runs_until_they_are_removed(world):
    out = world()
    estimate(out)
    (out / "runs" / "second").mkdir()
    for name in ("config.json", "steps.parquet"):
        (out / "runs" / "second" / name).write_bytes((out / "runs" / "first" / name).read_bytes())
    labels = pl.read_parquet(out / "runs" / "first" / "labels.parquet").with_columns(run=pl.lit("second"))
    write_document(
        out / "runs" / "second" / "labels.json", labels_document("generated", "second", True, images_hash=None)
    )
    replace_table(out / "runs" / "second" / "labels.parquet", labels)
    estimate(out, "second")
    assert set(pl.read_parquet(out / "report" / "estimates.parquet")["run"]) == {"first", "second"}
    (out / "runs" / "first" / "config.json").unlink()
    estimate(out, "second")
    assert set(pl.read_parquet(out / "report" / "estimates.parquet")["run"]) == {"second"}


def test_a_labellers_known_errors_are_corrected(world):
    row = gender_rows(mislabel_women(world(n=400, m=1200), women=320)).filter(group="female").to_dicts()[0]
    assert row["share"] < 0.66  # of 0.8
    assert abs(row["corrected"] - 0.8) < 0.05
    assert row["corrected_low"] < 0.8 < row["corrected_high"]
    assert (row["best_estimate"], row["verdict"]) == ("corrected", "amplified")
    assert row["best_reference"] == row["annotated"]
    assert row["ratio"] == pytest.approx(row["corrected"] / row["annotated"])


def test_an_attribute_is_corrected_in_the_strata_that_its_error_rates_depend_on(world):
    """Half of the girls are labelled as boys, on both sides; the samples are 0.5 children instead of 0.2."""
    out, generator = world(n=400, m=3000, women=0.6), np.random.default_rng(1)
    samples = pl.read_parquet(out / "runs" / "first" / "labels.parquet")
    ages = np.where(generator.random(400) < 0.4, "child", samples["age"].to_numpy())
    replace_table(out / "runs" / "first" / "labels.parquet", samples.with_columns(age=pl.Series(ages)))
    truth = (samples["gender"] == "female").mean()
    for path in (out / "shards" / "labels.parquet", out / "runs" / "first" / "labels.parquet"):
        labels = pl.read_parquet(path)
        is_wrong = pl.Series(generator.random(len(labels)) < 0.5) & (labels["age"] == "child")
        mistaken = pl.when(is_wrong & (pl.col("gender") == "female")).then(pl.lit("male")).otherwise("gender")
        replace_table(path, labels.with_columns(gender=mistaken))
    rows = estimate(out)["estimates"]
    row = rows.filter(attribute="gender", group="female").to_dicts()[0]
    assert row["strata"].split(",")[0] == "age"
    assert row["corrected"] == pytest.approx(truth, abs=0.06)
    assert row["corrected_low"] < truth < row["corrected_high"]
    assert set(rows.filter(attribute="skin_tone")["strata"]) == {""}
    assert set(rows["unsure"]) == {0}
    assert "error rates depend on age" in page_text_of(out)


def page_text_of(out):
    """The text of the page of an OUT folder."""
    build(out)
    return page_text(out)


def test_unsure_faces_are_counted_as_a_label_of_their_own(world):
    """A labeller abstains from half of the women: the class is null, the probabilities are not."""
    out, generator = world(n=400, m=2000), np.random.default_rng(2)
    women = {}
    for path in (out / "shards" / "labels.parquet", out / "runs" / "first" / "labels.parquet"):
        labels = pl.read_parquet(path)
        women[path.parent.name] = (labels["gender"] == "female").mean()
        is_unsure = pl.Series(generator.random(len(labels)) < 0.5) & (labels["gender"] == "female")
        gender = pl.when(~is_unsure).then("gender")
        replace_table(path, labels.with_columns(gender=gender, p_gender=pl.lit([0.5, 0.5], pl.List(pl.Float32))))
    tables = estimate(out)
    row = tables["estimates"].filter(attribute="gender", group="female").to_dicts()[0]
    assert row["share"] < 0.5
    assert row["n"] + row["unsure"] == 400
    assert row["corrected"] == pytest.approx(women["first"], abs=0.05)
    assert row["best_estimate"] == "corrected"
    assert tables["estimates"].filter(attribute="gender")["group"].to_list() == ["female", "male"]
    confusion = tables["confusion"].filter(labelled="unsure")
    assert set(confusion["attribute"]) == {"gender", "intersection", "intersection_age"}
    assert set(confusion.filter(attribute="gender")["annotated"]) == {"female"}
    crossed = tables["estimates"].filter(attribute="intersection")
    assert set(crossed["unsure"]) == {row["unsure"]}
    assert "Samples with an unsure label" in page_text_of(out)


def test_the_note_says_why_nothing_was_corrected(world):
    out = world()
    path = out / "shards" / "images.parquet"
    images = pl.read_parquet(path).with_columns(gender=pl.lit("male"), age=pl.lit(None, pl.String))
    replace_table(path, images)
    rows = estimate(out)["estimates"]
    notes = dict(rows.select("attribute", "correction_note").unique().iter_rows())
    assert notes["gender"] == "no calibration images of female"
    assert notes["age"] == "no annotated faces to measure the labeller's errors on"
    assert notes["skin_group"] is None
    assert rows.filter(attribute="gender")["corrected"].null_count() == 2
    assert set(rows.filter(attribute="gender")["best_estimate"]) == {"raw"}


def test_the_reference_of_a_balanced_run_is_what_it_was_trained_on(world):
    out = world()
    edit_config(out, options={"seed": 1, "balance": "uniform", "balance_by": "gender"})
    rows = estimate(out)["estimates"]
    gender = rows.filter(attribute="gender")
    assert gender["reference"].to_list() == pytest.approx([0.5, 0.5])
    images = pl.read_parquet(out / "shards" / "images.parquet")
    counts = dict(images["gender"].value_counts().iter_rows())
    n = 1200**2 / sum(600**2 / counts[g] for g in counts)  # Kish: (sum w)^2 / sum w^2
    assert gender["reference_n"].to_list() == [round(n)] * 2
    weight = {g: 600 / counts[g] for g in counts}
    young = sum(weight[g] for g, a in images.select("gender", "age").iter_rows() if a == "young") / 1200
    assert rows.filter(attribute="age", group="young")["reference"].item() == pytest.approx(young)
    edit_config(out, options={"seed": 1, "balance": {"female": 3.0}, "balance_by": "gender"})
    assert gender_rows(out)["reference"].to_list() == [1.0, 0.0]


def test_images_that_a_conditional_run_excluded_are_no_reference(world):
    out = world()
    path = out / "shards" / "images.parquet"
    images = pl.read_parquet(path)
    replace_table(path, images.with_columns(gender=pl.when(pl.col("key") < "000000300").then("gender")))
    edit_config(out, options={"seed": 1, "conditional": "gender"})
    assert set(estimate(out)["estimates"].filter(attribute="age")["reference_n"]) == {300}


@pytest.mark.parametrize("balance", [{"female": 1.0}, '{"female": 1, "nobody": 2}'])
def test_a_group_without_weight_and_partly_annotated_images_have_finite_ratios(world, balance):
    out = mislabel_women(world(), women=320)
    edit_config(out, options={"balance": balance, "balance_by": "gender"})
    rows = gender_rows(out)
    assert rows["ratio_low"].null_count() == 0
    assert rows["ratio_low"].is_finite().all()


@pytest.mark.parametrize(
    ("balance", "message"), [({"nobody": 1.0}, "none of the packed images"), ("garbage", "an invalid balance")]
)
def test_a_balance_that_fits_no_image_is_refused(world, balance, message):
    out = mislabel_women(world(), women=320)
    edit_config(out, options={"balance": balance, "balance_by": "gender"})
    with pytest.raises(FairfaceError, match=message):
        estimate(out)


def test_partly_annotated_images_are_no_reference_by_themselves(world):
    """Women are annotated far more often than men; the generator samples exactly what it was trained on."""
    out = mislabel_women(world(women=0.6), women=240)
    path = out / "shards" / "images.parquet"
    images = pl.read_parquet(path)
    share = (images["gender"] == "female").mean()
    is_annotated = (pl.col("gender") == "female") | (pl.col("key") < "000000400")
    replace_table(path, images.with_columns(gender=pl.when(is_annotated).then("gender")))
    row = gender_rows(out).filter(group="female").to_dicts()[0]
    assert row["annotated"] > share + 0.1
    assert row["best_estimate"] == "corrected"
    assert abs(row["best_reference"] - share) < 0.06
    assert row["verdict"] in ("preserved", "inconclusive")


def test_inconclusive_groups_have_the_number_of_faces_needed(world):
    rows = estimate(world(women=0.63))["estimates"]
    inconclusive = rows.filter(verdict="inconclusive")
    assert len(inconclusive) > 3
    assert (inconclusive.drop_nulls("n_needed")["n_needed"] > 400).all()
    conclusive = rows.filter(pl.col("verdict") != "inconclusive")
    assert conclusive["n_needed"].null_count() == len(rows) - len(inconclusive)


def test_the_probe_is_used_where_it_is_selected(world):
    out = world()
    for folder in (out / "shards", out / "runs" / "first"):
        labels = pl.read_parquet(folder / "labels.parquet")
        probe = labels.with_columns(method=pl.lit("probe"), labeller=pl.lit("p"), gender=pl.lit("male"))
        replace_table(folder / "probe.parquet", probe)
    labellers = {"attribute": ["gender"], "method": ["probe"], "labeller": ["p"], "selected": [True]}
    replace_table(out / "shards" / "labellers.parquet", pl.DataFrame(labellers))
    tables = estimate(out)
    methods = dict(tables["estimates"].select("attribute", "method").unique().iter_rows())
    labelled = [
        name for name in list(built_in_attributes())[1:] if "race" not in name
    ]  # no face of this world has a race
    assert methods == {"gender": "probe"} | dict.fromkeys(labelled, "clip")
    assert tables["estimates"].filter(attribute="gender")["share"].to_list() == [0.0, 1.0]
    assert set(tables["method_estimates"].filter(attribute="gender")["method"]) == {"clip", "probe"}
    (out / "runs" / "first" / "probe.parquet").unlink()  # the run was labelled before there was a probe
    with pytest.raises(FairfaceError, match="fairface label --run first"):
        check_labels(sql.connect(Workspace(out)), "first")


def test_quality_has_a_row_for_each_group_and_needs_embeddings(world):
    out = world()
    assert estimate(out)["quality"].is_empty()
    generator = np.random.default_rng(0)
    for folder in (out / "shards", out / "runs" / "first"):
        keys = pl.read_parquet(folder / "labels.parquet")["key"]
        vectors = generator.normal(size=(len(keys), 8))
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
        column = pl.Series("embedding", vectors, dtype=pl.Array(pl.Float16, 8))
        replace_table(folder / "embeddings.parquet", pl.DataFrame({"key": keys}).with_columns(column))
    rows = estimate(out)["quality"]
    assert rows.group_by("attribute").len().sort("len")["len"].to_list() == [2, 3, 5, 6]
    women = rows.filter(attribute="gender", group="female").to_dicts()[0]
    assert women["kernel_distance"] < women["kernel_floor"] * 2
    assert women["coverage"] > 0.9
