"""Predictions that were made elsewhere, and what AI-Face's own code says of the same ones."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

import sql
from pipeline.cli.main import main
from pipeline.detection import import_predictions
from reports import detection

REFERENCE = Path(__file__).parents[4] / "shared" / "reference" / "detector-fairness"
HEAD = "gender,skin_group,age,target,logit\n"
EXACT = {"f_efpr": 1, "f_eo": 1, "fpr_gap": 100, "auc_gap": 100, "error_rate_gap": 100, "f_oae": 100}
PRINTED = {"f_dp": 100, "f_meo": 100}  # to three decimals of a percentage


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="no reference data here")
@pytest.mark.parametrize("name", ["biased", "balanced"])
def test_figures_are_those_of_the_official_code(tmp_path, name):
    import_predictions.import_predictions(tmp_path, REFERENCE / f"{name}_predictions.csv", name)
    theirs, connection = json.loads((REFERENCE / f"{name}_expected.json").read_text()), sql.connect(tmp_path)
    utility = {(r["attribute"], r["group"]): r for r in sql.ask(connection, "utility", detector=name).to_dicts()}
    fairness = {r["attribute"]: r for r in sql.ask(connection, "fairness", detector=name).to_dicts()}
    for measure, value in theirs["overall"].items():
        ours = utility["all", "all"][measure.replace("acc", "accuracy")]
        assert ours == pytest.approx(value, abs=1e-9), measure
    for measure, times in EXACT.items():
        for attribute, value in theirs[measure + "_pct" * (times > 1)].items():
            assert times * fairness[attribute][measure] == pytest.approx(value, abs=1e-9), (measure, attribute)
    for measure, times in PRINTED.items():
        for attribute, value in theirs[f"{measure}_pct_3dp"].items():
            assert times * fairness[attribute][measure] == pytest.approx(value, abs=5.1e-4), (measure, attribute)
    groups = {group: row for (attribute, group), row in utility.items() if attribute != "all"}
    assert len(theirs["groups_5dp"]) == len(groups)
    for group, row in theirs["groups_5dp"].items():
        for measure, value in row.items():
            ours = groups[group.replace(",", "-")][{"acc": "accuracy"}.get(measure, measure)]
            assert ours == pytest.approx(value, abs=5.1e-6), (group, measure)


def faces(rng, n, shift=0.0):
    """Predictions of which those of dark-skinned faces are `shift` higher."""
    group, fake = rng.integers(0, 3, n), rng.random(n) < 0.5
    logit = np.where(fake, 1.0, -1.0) + shift * (group == 2) + rng.normal(size=n)
    names = np.array(["light", "medium", "dark"])[group]
    genders = rng.choice(["female", "male"], n)
    columns = {"gender": genders, "skin_group": names, "age": "adult", "target": fake.astype(int), "logit": logit}
    return pl.DataFrame(columns)


def test_a_group_of_one_target_alone_is_named_and_left_out(tmp_path):
    table = faces(np.random.default_rng(0), 400).filter((pl.col("skin_group") != "dark") | (pl.col("target") == 1))
    table.write_csv(tmp_path / "mine.csv")
    import_predictions.import_predictions(tmp_path, tmp_path / "mine.csv")
    connection = sql.connect(tmp_path)
    row = sql.ask(connection, "fairness").filter(attribute="skin_group").row(0, named=True)
    assert (row["groups"], row["undefined"]) == (2, "dark")
    rates = {r["group"]: r for r in sql.ask(connection, "utility", attribute="skin_group").to_dicts()}
    assert rates["dark"]["fpr"] is None
    assert rates["dark"]["auc"] is None
    assert rates["dark"]["tpr"] > 0.5
    assert row["f_dp"] == pytest.approx(abs(rates["light"]["positive_rate"] - rates["medium"]["positive_rate"]))
    found = detection.write(tmp_path, connection, "mine")
    assert found.filter(group="dark", measure="fpr").select("value", "low", "high").row(0) == (None, None, None)
    assert found.filter(group="dark", measure="tpr")["low"][0] < rates["dark"]["tpr"]


def test_no_interval_claims_to_be_certain(tmp_path):
    rows = [f"female,light,adult,{i % 2},{2 * (i % 2) - 1 + i / 1000}" for i in range(60)]
    (tmp_path / "x.csv").write_text(HEAD + "\n".join(rows))
    import_predictions.import_predictions(tmp_path, tmp_path / "x.csv", "x")
    found = detection.write(tmp_path, sql.connect(tmp_path), "x").filter(attribute="all")
    perfect = {row["measure"]: row for row in found.to_dicts()}
    assert perfect["fpr"]["value"] == 0
    assert 0.05 < perfect["fpr"]["high"] < 0.2
    assert (perfect["auc"]["value"], perfect["auc"]["low"]) == (1.0, None)
    (tmp_path / "x.csv").write_text(HEAD + "\n".join(f"female,light,adult,{i % 2},0.5" for i in range(60)))
    import_predictions.import_predictions(tmp_path, tmp_path / "x.csv", "x", force=True)
    assert sql.ask(sql.connect(tmp_path), "detection").is_empty()  # what described the others is gone
    row = sql.ask(sql.connect(tmp_path), "utility", attribute="all").row(0, named=True)
    assert (row["auc"], row["eer"]) == (0.5, None)


def test_many_draws_come_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    fake, weights = rng.random(50) < 0.5, rng.poisson(1, (40, 50)).astype(np.uint8)
    whole = detection.drawn(weights, fake, fake, np.arange(50))
    monkeypatch.setattr(detection, "BLOCK", 300)
    parts = detection.drawn(weights, fake, fake, np.arange(50))
    assert all(np.array_equal(whole[name], parts[name]) for name in whole)


def test_ties_and_unknown_groups(tmp_path):
    rows = ["female,light,adult,1,2", "female,light,,1,0", "male,,adult,0,0", "male,dark,,0,-1", ",dark,adult,1,-1"]
    (tmp_path / "x.csv").write_text(HEAD + "\n".join(rows))
    import_predictions.import_predictions(tmp_path, tmp_path / "x.csv", "x")
    connection = sql.connect(tmp_path)
    whole = sql.ask(connection, "utility", attribute="all").row(0, named=True)
    # fakes 2, 0, -1 against reals 0, -1: 2 + 1.5 + 0.5 of 6 pairs
    assert whole["auc"] == pytest.approx(4 / 6)
    assert (whole["fpr"], whole["tpr"]) == (0.5, pytest.approx(2 / 3))  # a logit of 0 is a probability of 0.5: fake
    genders = sql.ask(connection, "utility", attribute="gender")
    assert genders.select("group", "n").rows() == [("female", 2), ("male", 2)]


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_intervals_hold_and_the_floor_tells_chance_from_bias(tmp_path, shift):
    rng, seen = np.random.default_rng(2), []
    for world in range(12):
        out = tmp_path / str(world)
        out.mkdir()
        faces(rng, 1500, shift).write_csv(out / "d.csv")
        import_predictions.import_predictions(out, out / "d.csv")
        rows = detection.write(out, sql.connect(out), "d").filter(pl.col("attribute") == "skin_group")
        seen.append({row["measure"]: row for row in rows.filter(pl.col("group").is_null()).to_dicts()})
    normal = detection.NormalDist()
    truth = normal.cdf(shift - 1) - normal.cdf(-1)  # the FPR's gap; the TPR's is smaller
    held = [row["fpr_gap"]["low"] <= truth <= row["fpr_gap"]["high"] for row in seen]
    beyond = [row["f_meo"]["value"] > row["f_meo"]["floor"] for row in seen]
    assert sum(held) >= 10
    assert sum(beyond) == 12 if shift else sum(beyond) <= 3
    assert all(row[m]["low"] <= row[m]["value"] <= row[m]["high"] for row in seen for m in detection.FAIRNESS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1,2\n", "lacks gender, skin_group"),
        (HEAD, "holds no predictions"),
        (HEAD + "female,light,adult,2,1\n", "target in row 1 is none of 0, 1"),
        (HEAD + "female,light,adult,1,much\n", "logit in row 1 is no finite number"),
        (HEAD + "female,light,adult,1,inf\n", "logit in row 1 is no finite number"),
        (HEAD + "female,light,adult,1,\n", "logit in row 1"),
        (HEAD + "woman,light,adult,1,1\n", "'woman' is no gender"),
        (HEAD.replace("age", "gender") + "female,light,female,1,1\n", "the column 'gender' twice"),
        ("key," + HEAD + "a,female,light,adult,1,1\na,male,light,adult,0,1\n", "a key of its own"),
        ("", "can't be read as CSV"),
    ],
)
def test_predictions_that_cannot_be_taken_are_one_line(tmp_path, text, says):
    (tmp_path / "x.csv").write_text(text)
    done = CliRunner().invoke(main, ["detect", "--out", str(tmp_path / "o"), "--import", str(tmp_path / "x.csv")])
    assert done.exit_code == 1
    assert says in done.output
    assert len(done.output.splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_other_predictions_are_replaced_only_when_asked(tmp_path):
    out, csv = tmp_path / "o", tmp_path / "x.csv"
    words = ["detect", "--out", str(out), "--import", str(csv)]
    csv.write_text(HEAD + "female,light,adult,1,1\nmale,dark,adult,0,-1\n")
    assert CliRunner().invoke(main, words).exit_code == 0
    assert CliRunner().invoke(main, words).exit_code == 0  # the same again
    found = sql.ask(sql.connect(out), "detection", detector="x", measure="tpr")
    assert found.select("attribute", "value").row(0) == ("all", 1.0)
    csv.write_text(HEAD + "female,light,adult,1,-1\nmale,dark,adult,0,-1\n")
    assert "has other predictions" in CliRunner().invoke(main, words).output
    done = CliRunner().invoke(main, [*words, "--force"])
    assert "2 predictions, 1 of real and 1 of fake" in done.output
    assert "and not `all`" in CliRunner().invoke(main, [*words, "--name", "all"]).output
    assert "name of one folder" in CliRunner().invoke(main, [*words, "--name", "../x"]).output
