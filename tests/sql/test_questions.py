"""Answers to the named questions, and the refusal of wrong ones."""

import polars as pl
import pytest

import sql
from shards import provenance
from shards.documents import ProbeDocument, TablesDocument, write_document
from shards.errors import FairfaceError
from shards.workspace import Workspace


def test_every_question_has_an_answer_in_an_empty_workspace(tmp_path):
    connection = sql.connect(Workspace(tmp_path))
    for name, question in sql.questions().items():
        assert question.title, name
        required = [key for key, parameter in question.params.items() if parameter.default is None]
        if "other" in required:
            with pytest.raises(FairfaceError, match="no run 'x'; the runs are: none"):
                sql.ask(connection, name, other="x")
            continue
        assert sql.ask(connection, name, **dict.fromkeys(required, "female")).width > 1, name


def test_every_declared_parameter_is_used():
    for name, question in sql.questions().items():
        body = "\n".join(line for line in question.sql.splitlines() if not line.startswith("--"))
        assert all(f"${key}" in body for key in question.params), name


def test_distribution_counts_the_newest_run_by_default(workspace):
    connection = sql.connect(workspace)
    answer = sql.ask(connection, "distribution", source="generated")
    assert answer.rows() == [("generated", "female", 2, 1.0)]
    answer = sql.ask(connection, "distribution", source="generated", run="old")
    assert answer.rows() == [("generated", "female", 2, 0.5), ("generated", "male", 2, 0.5)]
    assert set(sql.ask(connection, "distribution")["source"]) == {"train", "generated", "annotated"}


def test_side_by_side_has_absent_classes_and_leaves_missing_labels_out(workspace):
    sides = sql.ask(sql.connect(workspace), "side_by_side", attribute="age")
    assert sides["group"].to_list() == ["child", "young", "adult", "middle", "senior"]
    assert sides["train"].to_list() == [0, 1, 2, 0, 0]
    assert sides["train_share"].sum() == pytest.approx(1)


def test_side_by_side_has_all_thirty_cells(workspace):
    sides = sql.ask(sql.connect(workspace), "side_by_side", attribute="intersection_age", run="old")
    assert len(sides) == 30
    assert sides["group"].to_list()[:3] == ["female-light-child", "female-light-young", "female-light-adult"]
    assert sides.filter(pl.col("generated") > 0)["group"].to_list() == [
        "female-light-young",
        "female-medium-adult",
        "male-medium-adult",
    ]


def test_training_labels_of_another_labeller_are_not_compared_with_a_runs(out, workspace):
    path = out / "runs" / "new" / "labels.parquet"
    pl.read_parquet(path).with_columns(labeller=pl.lit("other@2")).write_parquet(path)
    connection = sql.connect(workspace)
    assert set(sql.ask(connection, "distribution", run="new")["source"]) == {"generated", "annotated"}
    assert set(sql.ask(connection, "distribution", run="old")["source"]) == {"train", "generated", "annotated"}
    assert sql.ask(connection, "side_by_side", run="new")["train"].sum() == 0
    assert sql.ask(connection, "side_by_side", run="old")["train"].sum() == 4


def test_confidence_lists_the_least_confident_by_the_selected_labeller(out, workspace):
    path = out / "runs" / "new" / "labels.parquet"
    labels = pl.read_parquet(path)
    labels.with_columns(p_gender=pl.Series([[0.9, 0.1], [0.6, 0.4]])).write_parquet(path)
    connection = sql.connect(workspace)
    least = sql.ask(connection, "confidence")
    assert least.select("key", "group").rows() == [("1", "female"), ("0", "female")]
    assert least["probability"].to_list() == pytest.approx([0.6, 0.9])
    assert sql.ask(connection, "confidence", order="most", limit=1)["key"].to_list() == ["0"]
    assert sql.ask(connection, "confidence", attribute="age").is_empty()  # there are no probabilities of age
    probe = labels.with_columns(method=pl.lit("probe"), p_gender=pl.Series([[0.51, 0.49]] * 2))
    probe.write_parquet(path.with_name("probe.parquet"))
    for folder in (path.parent, out / "shards"):
        write_document(folder / "probe.json", ProbeDocument(fingerprint="", hash="", files={}))
    labellers = {"attribute": ["gender"], "method": ["probe"], "labeller": ["l"], "selected": [True]}
    pl.DataFrame(labellers).write_parquet(out / "shards" / "labellers.parquet")
    assert sql.ask(sql.connect(workspace), "confidence")["probability"].to_list() == pytest.approx([0.51, 0.51])


def test_missing_labels_have_no_confidence(out, workspace):
    path = out / "runs" / "new" / "labels.parquet"
    labels = pl.read_parquet(path).with_columns(gender=pl.Series(["female", None]))
    labels.with_columns(p_gender=pl.Series([[0.9, 0.1]] * 2)).write_parquet(path)
    assert sql.ask(sql.connect(workspace), "confidence")["key"].to_list() == ["0"]


def test_groups_that_training_lacks_are_the_most_over_represented(out, workspace):
    columns = dict.fromkeys(("run", "attribute", "group", "verdict", "best_estimate"), pl.String)
    columns |= dict.fromkeys(
        ("best_share", "best_share_low", "best_share_high", "ratio", "ratio_low", "ratio_high"), pl.Float64
    )
    rows = [
        ("new", "gender", "female", "amplified", "raw", 0.6, 0.5, 0.7, None, 9.0, None),
        ("new", "gender", "male", "reduced", "raw", 0.4, 0.3, 0.45, 0.5, 0.4, 0.6),
        ("new", "age", "child", "inconclusive", "raw", 0.1, 0.0, 0.2, 1.1, 0.9, 1.3),
    ]
    (out / "report").mkdir()
    pl.DataFrame(rows, schema=columns, orient="row").write_parquet(out / "report" / "estimates.parquet")
    made_of = {"new": provenance.estimate_inputs(workspace, "new")}
    write_document(workspace.report.tables_document, TablesDocument(made_of=made_of, files={}))
    connection = sql.connect(workspace)
    by_training = sql.ask(connection, "representation")
    assert by_training.select("group", "ratio").rows() == [("female", float("inf")), ("male", 0.5)]
    by_equal_shares = sql.ask(connection, "representation", baseline="equal", attribute="gender")
    assert by_equal_shares.select("group", "ratio", "verdict").rows() == [("male", 0.8, "under")]
    assert sql.ask(connection, "difference", run="new", other="newest").height == 3


def test_real_and_fake_images_are_counted(out, workspace):
    path = out / "shards" / "images.parquet"
    pl.read_parquet(path).with_columns(target=pl.lit("fake")).write_parquet(path)
    assert sql.ask(sql.connect(workspace), "target").rows() == [("fake", "GANs", 4, 1.0)]


def test_rejects_composition_and_faces(workspace):
    connection = sql.connect(workspace)
    assert sql.ask(connection, "rejects").select("reason", "subset", "images").rows() == [("empty", "S", 1)]
    assert sql.ask(connection, "composition").select("images", "share", "annotated").rows() == [(4, 1.0, 4)]
    faces = sql.ask(connection, "faces", attribute="skin_group", group="medium", source="train")
    assert faces.select("key", "shard").rows() == [("1", "a.tar"), ("2", "a.tar")]
    assert sql.ask(connection, "faces", group="female", limit=1).height == 1


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("nonsense", {}, "no question 'nonsense'"),
        ("distribution", {"atribute": "age"}, "no parameter 'atribute'"),
        ("distribution", {"attribute": "height"}, "attribute is one of gender"),
        ("distribution", {"run": "missing"}, "no run 'missing'"),
        ("faces", {}, "needs a value for group"),
        ("faces", {"group": "female", "limit": "many"}, "many"),
    ],
)
def test_wrong_questions_are_refused_in_one_line(workspace, name, params, message):
    with pytest.raises(FairfaceError, match=message) as caught:
        sql.ask(sql.connect(workspace), name, **params)
    assert "\n" not in str(caught.value)
