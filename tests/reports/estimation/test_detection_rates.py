"""How often detectors call a run's samples fake, by group, corrected for errors of the labels.

The coverage of the intervals in simulated worlds is tested in `tests.pipeline.bench.test_rate_worlds`.
"""

import numpy as np
import polars as pl
import pytest

import sql
from reports.estimation import estimates
from reports.estimation.audit.shares import NO_ANSWER, AuditedFaces
from reports.estimation.correction import Correction
from reports.estimation.detection_rates import rates_by_audit, rates_by_labels
from reports.estimation.rate_tables import discard_damaged_rates, has_rates
from shards.documents import write_document
from shards.provenance import current_files
from shards.workspace import Workspace
from tests.reports.estimation.test_audited import audit
from tests.reports.fake_workspace import (
    SAMPLES,
    build,
    make,
    page_text,
    predictions_document,
    replace_table,
    text_of,
)


def exact_correction(matrix: np.ndarray, *, replicates: int = 3) -> Correction:
    """A correction by error rates that are known exactly."""
    shares = np.full(len(matrix), 1 / len(matrix))
    return Correction(shares, np.tile(shares, (replicates, 1)), matrix, np.tile(matrix, (replicates, 1, 1)))


def test_perfect_labels_give_the_rates_that_are_counted():
    counts = np.array([[30, 0, 5], [70, 50, 0]])
    for correction in (None, exact_correction(np.eye(3))):
        estimate = rates_by_labels(counts, correction)
        assert estimate.rates == pytest.approx([0.7, 1, 0])
        assert estimate.faces == pytest.approx([100, 50, 5])
    low, high = rates_by_labels(counts, None).interval()
    assert low == pytest.approx([0.605, 0.951, 0], abs=0.02)  # Jeffreys' intervals of 70/100, 50/50 and 0/5
    assert high == pytest.approx([0.783, 1, 0.379], abs=0.06)


def test_known_errors_are_removed_and_unsure_labels_keep_their_decision():
    matrix = np.array([[0.8, 0.2], [0.1, 0.9]])
    true = np.array([[200, 100], [300, 400]])  # not called fake, called fake
    labelled = true @ matrix
    estimate = rates_by_labels(labelled, exact_correction(matrix))
    assert estimate.rates == pytest.approx([0.6, 0.8])
    assert estimate.faces == pytest.approx([500, 500])
    half_unsure = np.column_stack([labelled * [[0.5], [1]], labelled.sum(1) * [0.5, 0]])
    estimate = rates_by_labels(half_unsure, exact_correction(matrix))
    assert estimate.rates == pytest.approx([0.6, 0.8])
    raw = rates_by_labels(labelled, None)
    assert np.ptp(raw.rates) < np.ptp(estimate.rates)  # labels make the groups look alike


@pytest.mark.parametrize("called", [0, 1])
def test_the_rate_of_a_detector_that_always_decides_the_same_has_an_interval(called):
    counts = np.zeros((2, 2), int)
    counts[called] = [100, 40]
    estimate = rates_by_labels(counts, exact_correction(np.array([[0.9, 0.1], [0.2, 0.8]])))
    low, high = estimate.interval()
    assert estimate.rates == pytest.approx([called, called])
    assert ((high - low > 0.005) & (high - low < 0.3)).all()
    assert estimate.gap()["value"] == pytest.approx(0)


def test_a_group_without_faces_has_no_rate():
    estimate = rates_by_labels(np.array([[10, 0], [10, 0]]), None)
    assert estimate.rates[0] == 0.5
    assert np.isnan(estimate.rates[1])
    assert estimate.gap() == dict.fromkeys(("value", "low", "high", "floor"))


def test_a_plan_of_all_faces_gives_the_rates_that_people_see():
    """Answers of "can't tell", and missing ones, are missing at random."""
    seen = np.repeat([0, 1, 0, 1], [30, 10, 10, 30])
    called_fake = np.repeat([False, True], 40)
    ratings = np.stack([seen, np.where(np.arange(80) % 2, seen, NO_ANSWER)], 1)
    ratings[[5, 45]] = 2
    counts = np.array([[40, 0, 0], [40, 0, 0]])  # the labeller says one class of all
    faces = AuditedFaces(ratings, np.zeros(80, int), np.zeros(80, int), np.full(80, 0.999), counts.sum(0))
    estimate = rates_by_audit(faces, called_fake, counts=counts)
    kept = np.delete(np.arange(80), [5, 45])
    expected = [called_fake[kept][seen[kept] == group].mean() for group in (0, 1)]
    assert estimate.rates == pytest.approx(expected)
    low, high = estimate.interval()
    wide_low, wide_high = rates_by_audit(faces, called_fake, counts=counts, factor=2).interval()
    assert (wide_high - wide_low > 1.2 * (high - low)).all()


def write_predictions(out, logits, keys=None, name="mine"):
    """A detector's predictions of the samples of run `first`."""
    folder = Workspace(out).detector(name)
    folder.folder.mkdir(parents=True, exist_ok=True)
    keys = pl.read_parquet(out / "runs" / "first" / "samples.parquet")["key"] if keys is None else keys
    about = {"detector": name, "source": "samples", "run": "first", "grouped_by": "labelled", "target": "fake"}
    of_samples = pl.DataFrame({"key": keys, "logit": logits}).with_columns(
        pl.lit(value).alias(column) for column, value in (about | {"part": "samples", "perturbation": "none"}).items()
    )
    images = pl.read_parquet(out / "shards" / "images.parquet")["key"][:40]
    about |= {"source": "images", "run": None, "grouped_by": "annotated", "part": "test", "perturbation": "none"}
    of_images = pl.DataFrame(
        {"key": images, "logit": np.tile([1.0, -1.0], 20), "target": ["fake", "fake", "real", "real"] * 10}
    ).with_columns(pl.lit(value, pl.String).alias(column) for column, value in about.items() if column != "target")
    write_document(folder.predictions_document, predictions_document(samples={"first": SAMPLES}))
    replace_table(folder.predictions, pl.concat([of_samples, of_images.select(of_samples.columns)]))


def estimate(out, detectors=("mine",)):
    """Write the estimates of run `first` and the rates of its samples, as a report does."""
    workspace = Workspace(out)
    estimates.write_estimates(workspace, sql.connect(workspace), run="first", detectors=detectors)


def rates_of(out, attribute="gender"):
    rows = sql.ask(sql.connect(Workspace(out)), "detection_rates", run="first").filter(attribute=attribute)
    return {row["group"]: row for row in rows.to_dicts()}


@pytest.fixture
def noisy(tmp_path):
    """An OUT folder whose labels mistake a fifth of either gender, and a detector that calls 90 % of the women fake."""
    out, rng = make(tmp_path / "out", n=2000, m=2400), np.random.default_rng(1)
    samples = pl.read_parquet(out / "runs" / "first" / "labels.parquet")
    is_female = (samples["gender"] == "female").to_numpy()
    for path in (out / "shards" / "labels.parquet", out / "runs" / "first" / "labels.parquet"):
        table = pl.read_parquet(path)
        is_wrong = pl.Series(rng.random(len(table)) < 0.2)
        other = pl.col("gender").replace_strict({"female": "male", "male": "female"})
        replace_table(path, table.with_columns(gender=pl.when(is_wrong).then(other).otherwise("gender")))
    write_predictions(out, np.where(rng.random(2000) < np.where(is_female, 0.9, 0.5), 1.0, -1.0))
    return out, is_female


def test_the_rates_of_a_runs_samples_are_corrected_by_the_labellers_errors(noisy):
    out, is_female = noisy
    assert rates_of(out)["female"]["correction"] is None  # until the report is built
    text = text_of(build(out).page.read_text())
    called = pl.read_parquet(Workspace(out).detector("mine").predictions).filter(part="samples")["logit"].to_numpy() > 0
    rows = rates_of(out)
    for group, is_group in (("female", is_female), ("male", ~is_female)):
        row = rows[group]
        assert row["correction"] == "labels"
        assert row["corrected_low"] < called[is_group].mean() < row["corrected_high"]
        assert abs(row["corrected"] - called[is_group].mean()) < abs(row["rate"] - called[is_group].mean()) / 2
        assert f"{group} {100 * row['corrected']:.1f} % {100 * row['corrected_low']:.1f} to" in text
    gaps = sql.ask(sql.connect(Workspace(out)), "detection_gaps", run="first").filter(attribute="gender")
    (gap,) = gaps.to_dicts()
    assert gap["gap"] == pytest.approx(rows["female"]["corrected"] - rows["male"]["corrected"])
    assert gap["floor"] < gap["low"] < gap["gap"] < gap["high"]
    assert {"skin_group", "age", "intersection"} <= set(
        sql.ask(sql.connect(Workspace(out)), "detection_gaps", run="first")["attribute"]
    )
    assert not build(out).rebuilt


def test_rates_are_out_of_date_when_their_inputs_change(noisy):
    out, _ = noisy
    workspace = Workspace(out)
    keys = pl.read_parquet(out / "runs" / "first" / "samples.parquet")["key"]
    write_predictions(out, np.ones(2000), name="other")
    estimate(out, ["mine", "other"])
    assert has_rates(workspace, "first", detectors=["mine", "other"])
    assert not current_files(workspace).warnings
    write_predictions(out, np.ones(400), keys[:400])
    (warning,) = current_files(workspace).warnings
    assert "detection rates of first/mine were not computed from the present labels and predictions" in warning
    rows = sql.ask(sql.connect(workspace), "detection_rates", run="first").filter(group="female")
    assert dict(rows.select("detector", "correction").iter_rows()) == {"mine": None, "other": "labels"}
    estimate(out)  # of the other detector, which another process may be training, the rows stay
    assert has_rates(workspace, "first", detectors=["mine", "other"])
    assert not current_files(workspace).warnings
    labels = pl.read_parquet(out / "runs" / "first" / "labels.parquet")
    replace_table(out / "runs" / "first" / "labels.parquet", labels.with_columns(gender=pl.lit("male")))
    assert rates_of(out)["male"]["correction"] is None
    assert not has_rates(workspace, "first", detectors=["mine"])


def test_a_damaged_table_of_rates_is_written_again(noisy):
    out, _ = noisy
    workspace = Workspace(out)
    estimate(out)
    discard_damaged_rates(workspace)
    assert rates_of(out)["female"]["correction"] == "labels"
    workspace.report.rate_estimates.write_bytes(b"damaged")
    assert not has_rates(workspace, "first", detectors=["mine"])
    discard_damaged_rates(workspace)
    estimate(out)
    assert rates_of(out)["female"]["correction"] == "labels"
    workspace.report.rates_document.unlink()  # a kill while it was written
    (warning,) = current_files(workspace).warnings
    assert "rate_estimates.parquet is not finished: run `fairface report` again" in warning
    assert rates_of(out)["female"]["correction"] is None


def test_rates_of_people_replace_those_of_a_labeller_whose_confidence_has_shifted(noisy, monkeypatch):
    out, is_female = noisy
    true = dict(zip(pl.read_parquet(out / "runs" / "first" / "samples.parquet")["key"], is_female, strict=True))
    monkeypatch.setattr(
        "reports.estimation.estimates.shifted_attributes", lambda *_: {("gender", "clip"), ("intersection", "clip")}
    )
    estimate(out)
    rows = rates_of(out)
    assert (rows["female"]["corrected"], rows["female"]["correction"]) == (None, "none")
    assert "confidence differs between samples and photographs" in rows["female"]["note"]
    assert rates_of(out, "age")["adult"]["correction"] == "labels"
    gap = sql.ask(sql.connect(Workspace(out)), "detection_gaps", run="first").row(0, named=True)
    assert (gap["attribute"], gap["correction"]) == ("gender", "none")
    assert gap["gap"] == pytest.approx(rows["female"]["rate"] - rows["male"]["rate"])
    folder = Workspace(out).run("first")

    def see(values):
        keys = pl.read_parquet(folder.audit.plan).filter(source="generated")["key"]
        return pl.Series(["female" if true[key] else "male" for key in keys])

    audit(out, "--labels", "300", "--attribute", "gender", see={"gender": see})
    estimate(out)
    row = rates_of(out)["female"]
    assert row["correction"] == "audit"
    assert row["corrected_low"] < 0.9 < row["corrected_high"]
    assert row["corrected"] > rows["female"]["rate"] + 0.03


def test_a_labeller_made_for_synthetic_faces_does_not_correct_real_ones(tmp_path):
    out = make(tmp_path / "out", synthetic=False)
    estimate(out, [])
    assert not Workspace(out).report.rate_estimates.exists()  # without a detector
    write_predictions(out, np.ones(400))
    text = page_text(out)
    row = rates_of(out)["female"]
    assert (row["correction"], row["note"]) == ("none", "the labeller was made for synthetic faces")
    assert "Not corrected: Gender" in text


def test_only_samples_with_a_decision_count(noisy):
    """A detector that was trained on the samples has decided only on those it was tested on."""
    out, _ = noisy
    keys = pl.read_parquet(out / "runs" / "first" / "samples.parquet")["key"]
    write_predictions(out, np.ones(100), keys[100:200])
    estimate(out)
    rows = rates_of(out)
    assert sum(row["n"] for row in rows.values()) == 100
    assert all(row["corrected"] == pytest.approx(1) and row["corrected_low"] > 0.5 for row in rows.values())
