"""People's answers in the estimates of a run: which shares decide, what they are made of, and what SQL shows."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

import sql
from reports.estimation import estimates
from reports.estimation.attribute_estimate import AuditedSides, ReferenceShares, audited_ratios
from reports.estimation.audit.read import Audit
from reports.estimation.audit.shares import estimate_audit
from reports.estimation.audited import estimate_side
from shards.audit import AuditPlan
from shards.audit_tables import RATING_COLUMNS, read_plan_table
from shards.documents import read_document
from shards.workspace import Workspace
from tests.pipeline.audit.helpers import answers_csv
from tests.pipeline.cli.helpers import error_line, fairface
from tests.reports.estimation.audit.faces import audited_faces
from tests.reports.fake_workspace import edit_config, make, page_text, replace_table


def audit(out, *words, raters=("Ann",), see=None, error=0.0):
    """Plan an audit, answer as the `see`n classes of each attribute ask (by default, as labelled), and import.

    `see` maps an attribute to a function from the labels of all faces to people's answers.
    """
    fairface("audit", "plan", "--out", out, *words)
    answer(out, raters=raters, see=see, error=error)


def answer(out, *, raters=("Ann",), see=None, error=0.0, count=None):
    """Answer about the first `count` faces of the plan, by default all, and import the answers."""
    workspace = Workspace(out)
    folder = workspace.run("first")
    plan = read_document(folder.audit.plan_document, AuditPlan)
    faces = read_plan_table(folder.audit, plan)[:count]
    sides = {"generated": folder.label_files.labels, "train": workspace.shards.label_files.labels}
    rng = np.random.default_rng(0)
    for rater in raters:
        table = []
        for source, path in sides.items():
            of_side = faces.filter(source=source)
            labels = of_side.join(pl.read_parquet(path), on="key", how="left", maintain_order="left")
            for name in plan.sides[source].attributes if source in plan.sides else ():
                answers = labels[name].cast(pl.String)
                answers = (see or {}).get(name, lambda values: values)(answers)
                is_wrong = pl.Series(rng.random(len(answers)) < error)
                wrong = pl.select(pl.when(is_wrong).then(pl.lit(plan.classes[name][0])).otherwise(answers)).to_series()
                table.append(of_side.select("face", attribute=pl.lit(name), answer=wrong))
        rows = pl.concat(table).sort("face", maintain_order=True)
        header = answers_csv(folder.audit, plan, rater).splitlines()[0]
        lines = [
            f"{plan.id},{plan.run},{rater},{len(rows)},{face},{name},{text}" for face, name, text in rows.iter_rows()
        ]
        path = out.parent / f"{rater}.csv"
        path.write_text("\n".join([header, *lines, ""]))
        fairface("audit", "import", "--out", out, "--replace", path)


def tables(out):
    workspace = Workspace(out)
    return estimates.write_estimates(workspace, sql.connect(workspace), run="first")


def of_attribute(table, name):
    return table.filter(attribute=name)


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """An OUT folder whose two raters see a third of the women as men, and its tables."""
    out = make(tmp_path_factory.mktemp("audited") / "out", n=800)

    def men(values):
        return pl.Series(np.where(np.arange(len(values)) % 3 == 0, "male", values.to_numpy()))

    audit(out, "--labels", 300, "--attribute", "gender", "--attribute", "skin_tone", raters="AB", see={"gender": men})
    return out, tables(out)


def test_peoples_shares_decide_where_there_are_any(audited):
    _, found = audited
    gender = of_attribute(found["estimates"], "gender")
    women = gender.filter(group="female").row(0, named=True)
    assert set(gender["best_estimate"]) == {"audited"}
    assert women["audited_low"] < 0.4 < women["audited_high"] < women["share_low"]
    assert women["best_share"] == women["audited"]
    assert women["ratio"] == pytest.approx(women["audited"] / women["best_reference"])
    assert (women["verdict"], women["unaudited_verdict"]) == ("reduced", "preserved")
    assert gender["audited"].sum() == pytest.approx(1)
    assert set(of_attribute(found["estimates"], "age")["best_estimate"]) <= {"raw", "corrected"}
    assert of_attribute(found["estimates"], "age")["audited"].null_count() == 5


def test_groups_and_crosses_follow_from_the_answers(audited):
    _, found = audited
    names = ["gender", "skin_group", "skin_tone", "intersection"]
    assert set(found["audit"]["attribute"]) == set(names)
    assert set(found["estimates"].filter(best_estimate="audited")["attribute"]) == set(names)
    cross = of_attribute(found["estimates"], "intersection")
    women = cross.filter(pl.col("group").str.starts_with("female"))["human"].sum()
    assert women == pytest.approx(of_attribute(found["estimates"], "gender")["human"][0])


def test_every_estimate_stands_next_to_the_others(audited):
    _, found = audited
    rows = of_attribute(found["method_estimates"], "gender").filter(group="female")
    assert rows["estimate"].to_list() == ["raw", "corrected", "human", "audited"]
    assert rows.filter("used")["estimate"].to_list() == ["audited"]
    distances = of_attribute(found["distances"], "gender").filter(measure="total_variation", estimate="audited")
    assert set(distances["baseline"]) == {"reference", "uniform"}
    assert (distances["low"] <= distances["value"]).all()


def test_answers_plan_and_errors_can_be_queried(audited):
    out, _ = audited
    connection = sql.connect(Workspace(out))
    answers = sql.select(connection, "from ratings")
    assert set(answers["rater"]) == {"A", "B"}
    assert len(answers) == 1200
    assert set(answers.columns) == {"run", *RATING_COLUMNS}
    assert len(sql.select(connection, "from audit_faces where run = 'first'")) == 300
    agreement = sql.ask(connection, "audit_agreement", run="first").filter(attribute="skin_tone").row(0, named=True)
    assert (agreement["planned"], agreement["classified"], agreement["raters"]) == (300, 300, 2)
    assert (agreement["alpha_ordinal"], agreement["same"], agreement["cant_tell"]) == (1, 1, 0)
    errors = sql.ask(connection, "audit_errors", run="first", attribute="gender")
    seen_as_men = errors.filter(seen="male", labelled="female").row(0, named=True)
    assert seen_as_men["share_low"] < seen_as_men["share"] < seen_as_men["share_high"]
    assert seen_as_men["photographs_share"] == 0
    assert len(sql.ask(connection, "audit", run="first", attribute="gender")) == 2
    assert sql.ask(connection, "audit_agreement", run="first").filter(attribute="gender")["errors_p"][0] < 0.01


def test_the_page_has_a_section(audited):
    out, _ = audited
    text = page_text(out)
    assert "What do people see?" in text
    assert "300 samples were chosen by strata of the labeller" in text
    assert "women (preserved by the labeller, reduced by the audit)" in text
    assert "alpha is 1.00 (ordinal, 1.00 to 1.00)" in text
    assert "errors differ from those on photographs (p is less than 0.01)" in text
    assert "People labelled 300 samples (gender and skin tone); their labels changed" in text


def test_training_images_are_audited_where_they_are_not_annotated(tmp_path):
    out = make(tmp_path / "out", annotated=False)
    audit(out, "--labels", 200, "--attribute", "gender")
    found = tables(out)
    assert set(found["audit"]["source"]) == {"generated", "train"}
    gender = of_attribute(found["estimates"], "gender")
    assert set(gender["best_estimate"]) == {"audited"}
    assert (gender["best_reference_low"] < gender["best_reference"]).all()
    assert gender["best_reference"].sum() == pytest.approx(1)


def test_the_errors_of_both_sides_are_independent():
    counts = [1500, 1500, 0]
    faces = audited_faces([0, 1] * 75, ([0, 1] * 75)[:140] + [0] * 10, counts=counts)
    audit_of_both = Audit(SimpleNamespace(labels=[300]), {}, {}, 1, {})
    sides = [estimate_side(audit_of_both, source, faces).powered for source in ("generated", "train")]
    errors = [side.bootstrap_shares[:, 0] for side in sides]
    assert abs(np.corrcoef(errors)[0, 1]) < 0.1


def test_a_class_that_people_saw_on_no_training_image_may_have_been_missed():
    counts = [2900, 100, 0]
    seen, unseen = (audited_faces([0] * (150 - n) + [1] * n, [0] * 150, counts=counts) for n in (4, 0))
    generated, train = (estimate_audit(faces, seed=seed) for seed, faces in enumerate((seen, unseen)))
    shares = train.powered
    exact = ReferenceShares(shares.shares, shares.bootstrap_shares)
    reference = replace(exact, audited=shares)
    assert reference.interval()[1][1] > 0.01
    low, lower = (audited_ratios(AuditedSides(generated, item)).low[1] for item in (exact, reference))
    assert lower < 1 < low


def test_raters_who_disagree_are_the_reason(tmp_path):
    out = make(tmp_path / "out", n=800)
    audit(out, "--labels", 200, "--attribute", "gender", raters="A")
    for rater, group in (("B", "male"), ("C", "female")):
        answer(out, raters=rater, see={"gender": lambda values, group=group: pl.repeat(group, len(values), eager=True)})
    gender = of_attribute(tables(out)["estimates"], "gender")
    assert set(gender["inconclusive_reason"]) == {"raters"}
    assert "raters disagree" in page_text(out)


def test_an_extended_plan_has_wider_intervals(tmp_path):
    out = make(tmp_path / "out")
    audit(out, "--labels", 100, "--attribute", "gender")
    first = of_attribute(tables(out)["estimates"], "gender")
    fairface("audit", "plan", "--out", out, "--extend", 10)
    unanswered = of_attribute(tables(out)["estimates"], "gender")
    answer(out)
    second = of_attribute(tables(out)["estimates"], "gender")
    widths = [(table["human_high"] - table["human_low"])[0] for table in (first, unanswered, second)]
    assert widths[1] == pytest.approx(widths[0], rel=0.02)
    assert widths[2] > 1.3 * widths[0]


def test_incomplete_answers_have_wider_intervals(tmp_path):
    out = make(tmp_path / "out")
    fairface("audit", "plan", "--out", out, "--labels", 100, "--attribute", "gender")
    looks, widths = [], []
    for count in (80, 95):
        answer(out, count=count)
        found = tables(out)
        looks.append(of_attribute(found["audit"], "gender")["looks"][0])
        estimate = of_attribute(found["estimates"], "gender")
        widths.append((estimate["human_high"] - estimate["human_low"])[0])
    assert looks == [2, 1]
    assert widths[0] > 1.3 * widths[1]


def test_answers_that_nobody_can_tell_change_nothing(tmp_path):
    out = make(tmp_path / "out")
    before = tables(out)["estimates"]
    audit(
        out,
        "--labels",
        50,
        "--attribute",
        "gender",
        see={"gender": lambda values: pl.repeat("can't tell", len(values), eager=True)},
    )
    after = tables(out)
    assert after["audit"].is_empty()
    assert after["estimates"].equals(before)


def test_answers_of_one_class_only_are_estimated(tmp_path):
    out = make(tmp_path / "out")
    audit(
        out,
        "--labels",
        50,
        "--attribute",
        "gender",
        see={"gender": lambda values: pl.repeat("male", len(values), eager=True)},
    )
    gender = of_attribute(tables(out)["estimates"], "gender")
    assert gender["audited"].to_list() == pytest.approx([0, 1], abs=0.05)
    assert gender["audited_low"][0] == 0
    assert 0.02 < gender["audited_high"][0] < 0.2


def test_estimates_are_stale_after_an_import_and_unaffected_by_a_plan_of_other_samples(tmp_path):
    out = make(tmp_path / "out")
    audit(out, "--labels", 50, "--attribute", "gender")
    tables(out)
    assert estimates.has_estimates(Workspace(out), "first")
    answer(out, error=0.3)
    assert not estimates.has_estimates(Workspace(out), "first")
    ratings = Workspace(out).run("first").audit.ratings
    ratings.write_bytes(ratings.read_bytes()[:-1])
    assert str(ratings) in error_line("report", "--out", out)


def test_audited_training_images_count_as_often_as_they_were_trained_on(tmp_path):
    """Women and men have different skin tones, which are not annotated; the run was trained on as many men as women."""
    out = make(tmp_path / "out")
    shards = out / "shards"
    images, labels = (pl.read_parquet(shards / name) for name in ("images.parquet", "labels.parquet"))
    tones = images.select("key", tone=pl.when(pl.col("gender") == "female").then(1).otherwise(10))
    replace_table(shards / "images.parquet", images.with_columns(skin_tone=pl.lit(None, pl.Int8)))
    seen = labels.join(tones, on="key").with_columns(skin_tone=pl.col("tone").cast(pl.Int8)).drop("tone")
    replace_table(shards / "labels.parquet", seen)
    edit_config(out, options={"seed": 1, "balance": "uniform", "balance_by": "gender"})
    audit(out, "--labels", 300, "--attribute", "skin_tone")
    tone = of_attribute(tables(out)["estimates"], "skin_tone").filter(group="1").row(0, named=True)
    assert images["gender"].eq("female").mean() > 0.57
    assert tone["best_reference_low"] < 0.5 < tone["best_reference_high"] < 0.57
