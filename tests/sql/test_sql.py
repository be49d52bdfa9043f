"""The views, the questions and the lock around them."""

import json

import duckdb
import polars as pl
import pytest

import sql
from shards.errors import FairfaceError

PEOPLE = {  # key: gender, age, skin tone
    "0": ("female", "young", 1),
    "1": ("female", "adult", 5),
    "2": ("male", "adult", 5),
    "3": ("male", None, 9),
}


def frame(people, **columns):
    rows = [{"key": k, "gender": g, "age": a, "skin_tone": t} for k, (g, a, t) in people.items()]
    return pl.DataFrame(rows).with_columns(*(pl.lit(v).alias(k) for k, v in columns.items()))


@pytest.fixture
def out(tmp_path):
    """Two runs, four packed images, one rejected; every share below is counted by hand from PEOPLE."""
    shards = tmp_path / "shards"
    shards.mkdir()
    packed = frame(PEOPLE, status="packed", shard="a.tar", path="x.jpg", family="GANs", subset="S")
    packed = packed.with_columns(skin_group=pl.Series(["light", "medium", "medium", None]))
    rejected = packed.head(1).with_columns(key=pl.lit("r"), status=pl.lit("rejected"), reason=pl.lit("empty"))
    pl.concat([packed, rejected], how="diagonal").write_parquet(shards / "images.parquet")
    frame(PEOPLE, source="train", labeller="l@1", size=64).write_parquet(shards / "labels.parquet")
    for day, run in enumerate(("old", "new"), 1):
        folder = tmp_path / "runs" / run
        folder.mkdir(parents=True)
        config = {"run": run, "status": "finished", "started": f"2026-01-0{day}", "extra": {"ignored": [1]}}
        config |= {"options": {"steps": 10, "seed": day, "ema": 0.99}, "data": {"drawn": True, "images": 4}}
        (folder / "config.json").write_text(json.dumps(config))
        people = {k: PEOPLE[k] for k in ("0", "1")} if run == "new" else PEOPLE
        frame(people, source="generated", run=run, labeller="l@1").write_parquet(folder / "labels.parquet")
        steps = {"step": list(range(1, 11)), "loss_d": [float(day)] * 10}
        pl.DataFrame(steps).write_parquet(folder / "steps.parquet")
    return tmp_path


def test_every_question_answers_where_nothing_exists(tmp_path):
    connection = sql.connect(tmp_path)
    for name, question in sql.questions().items():
        assert question.title, name
        needed = [key for key, parameter in question.params.items() if parameter.default is None]
        if "other" in needed:
            with pytest.raises(FairfaceError, match="no run 'x'; the runs are: none"):
                sql.ask(connection, name, other="x")
            continue
        given = dict.fromkeys(needed, "female")
        assert sql.ask(connection, name, **given).width > 1, name
    views = ("images", "rejects", "samples", "labels", "estimates", "distances", "runs", "steps", "confusion")
    views += ("readings", "quality", "labellers", "said", "confidence", "neighbours", "unmatched")
    for view in views:
        assert sql.query(connection, f"from {view}").height == 0, view


def test_every_parameter_that_a_question_uses_is_declared():
    for name, question in sql.questions().items():
        body = "\n".join(line for line in question.sql.splitlines() if not line.startswith("--"))
        assert all(f"${key}" in body for key in question.params), name


def test_distribution_counts_the_newest_run_unless_told_otherwise(out):
    connection = sql.connect(out)
    answer = sql.ask(connection, "distribution", source="generated")
    assert answer.rows() == [("generated", "female", 2, 1.0)]
    answer = sql.ask(connection, "distribution", source="generated", run="old")
    assert answer.rows() == [("generated", "female", 2, 0.5), ("generated", "male", 2, 0.5)]
    assert set(sql.ask(connection, "distribution")["source"]) == {"train", "generated", "annotated"}


def test_sides_hold_absent_classes_and_leave_missing_labels_out(out):
    sides = sql.ask(sql.connect(out), "sides", attribute="age")
    assert sides["group"].to_list() == ["child", "young", "adult", "middle", "senior"]
    assert sides["train"].to_list() == [0, 1, 2, 0, 0]
    assert sides["train_share"].sum() == pytest.approx(1)


def test_groups_and_intersections_come_from_the_views(out):
    connection = sql.connect(out)
    labels = sql.query(connection, "select skin_group, intersection from labels where source = 'train' order by key")
    assert labels.rows() == [
        ("light", "female-light"),
        ("medium", "female-medium"),
        ("medium", "male-medium"),
        ("dark", "male-dark"),
    ]
    images = sql.query(connection, "select intersection from images where status = 'packed' order by key")
    assert images["intersection"].to_list()[2:] == ["male-medium", None]


def test_thirty_cells_come_from_the_views_and_empty_ones_are_there(out):
    sides = sql.ask(sql.connect(out), "sides", attribute="intersection_age", run="old")
    assert len(sides) == 30
    assert sides["group"].to_list()[:3] == ["female-light-child", "female-light-young", "female-light-adult"]
    assert sides.filter(pl.col("generated") > 0)["group"].to_list() == [
        "female-light-young",
        "female-medium-adult",
        "male-medium-adult",
    ]


def test_the_least_certain_come_first_by_the_labeller_that_counts(out):
    path = out / "runs" / "new" / "labels.parquet"
    labels = pl.read_parquet(path)
    labels.with_columns(p_female=pl.Series([0.9, 0.6]), p_male=pl.Series([0.1, 0.4])).write_parquet(path)
    connection = sql.connect(out)
    least = sql.ask(connection, "confidence")
    assert least.select("key", "group").rows() == [("1", "female"), ("0", "female")]
    assert least["probability"].to_list() == pytest.approx([0.6, 0.9])
    assert sql.ask(connection, "confidence", order="most", limit=1)["key"].to_list() == ["0"]
    assert sql.ask(connection, "confidence", attribute="age").is_empty()  # no probabilities were given
    labels.with_columns(method=pl.lit("probe"), p_female=0.51, p_male=0.49).write_parquet(
        path.with_name("probe.parquet")
    )
    judged = {"attribute": ["gender"], "method": ["probe"], "labeller": ["l"], "chosen": [True]}
    pl.DataFrame(judged).write_parquet(out / "shards" / "labellers.parquet")
    assert sql.ask(sql.connect(out), "confidence")["probability"].to_list() == pytest.approx([0.51, 0.51])


def test_groups_that_training_lacks_are_the_most_over_represented(out):
    columns = dict.fromkeys(("run", "attribute", "group", "verdict", "best"), pl.String)
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
    connection = sql.connect(out)
    assert sql.ask(connection, "shifts").select("group", "times").rows() == [("female", float("inf")), ("male", 0.5)]
    even = sql.ask(connection, "shifts", against="equal", attribute="gender")
    assert even.select("group", "times", "verdict").rows() == [("male", 0.8, "under")]
    assert sql.ask(connection, "difference", run="new", other="newest").height == 3


def test_what_was_not_said_has_no_confidence(out):
    path = out / "runs" / "new" / "labels.parquet"
    labels = pl.read_parquet(path).with_columns(p_female=0.9, p_male=0.1, gender=pl.Series(["female", None]))
    labels.write_parquet(path)
    assert sql.ask(sql.connect(out), "confidence")["key"].to_list() == ["0"]


def test_real_and_fake_are_counted(out):
    path = out / "shards" / "images.parquet"
    pl.read_parquet(path).with_columns(target=pl.lit("fake")).write_parquet(path)
    assert sql.ask(sql.connect(out), "target").rows() == [("fake", "GANs", 4, 1.0)]


def test_the_views_open_in_any_duckdb(out):
    with duckdb.connect() as plain:  # as the shell does with -init
        plain.execute(sql.views(out))
        assert plain.execute("select count(*) from labels").fetchone() == (10,)
        assert plain.execute("select the_run('newest')").fetchone() == ("new",)


def test_runs_and_steps_take_their_run_from_their_folder(out):
    connection = sql.connect(out)
    runs = sql.ask(connection, "runs")
    assert runs["run"].to_list() == ["new", "old"]
    assert runs.select("seed", "ema", "drawn", "images").row(0) == (2, 0.99, True, 4)
    curve = sql.ask(connection, "loss_curves", run="old", points=5)
    assert curve["step"].to_list() == [2, 4, 6, 8, 10]
    assert set(curve["loss_d"]) == {1.0}


def test_rejects_composition_and_keys(out):
    connection = sql.connect(out)
    assert sql.ask(connection, "rejects").select("reason", "subset", "images").rows() == [("empty", "S", 1)]
    assert sql.ask(connection, "composition").select("images", "female", "dark").rows() == [(4, 0.5, 0.0)]
    keys = sql.ask(connection, "keys", attribute="skin_group", group="medium", source="train")
    assert keys.select("key", "shard").rows() == [("1", "a.tar"), ("2", "a.tar")]
    assert sql.ask(connection, "keys", group="female", limit=1).height == 1


@pytest.mark.parametrize(
    ("name", "params", "says"),
    [
        ("nonsense", {}, "no question 'nonsense'"),
        ("distribution", {"atribute": "age"}, "no parameter 'atribute'"),
        ("distribution", {"attribute": "height"}, "attribute is one of gender"),
        ("distribution", {"run": "missing"}, "no run 'missing'"),
        ("keys", {}, "needs a value for group"),
        ("keys", {"group": "female", "limit": "many"}, "many"),
    ],
)
def test_wrong_questions_are_one_clear_line(out, name, params, says):
    with pytest.raises(FairfaceError, match=says) as caught:
        sql.ask(sql.connect(out), name, **params)
    assert "\n" not in str(caught.value)


def test_a_session_variable_never_stands_in_for_a_parameter(out):
    connection = sql.connect(out)
    connection.execute("set variable seen = 5")
    with pytest.raises(FairfaceError, match="seen"):
        sql.query(connection, "select $seen")


@pytest.mark.parametrize(
    "text",
    [
        "from read_text('/etc/passwd')",
        "from read_text('{out}/../secret.txt')",
        "from read_text('{out}/link.txt/../../secret.txt')",
        "from read_csv('https://example.invalid/x.csv')",
        "from glob('/etc/*')",
        "copy (select 1) to '{out}/w.csv'",
        "with x as (copy (select 1) to '{out}/w.csv') from x",
        "with y as (with x as (copy (select 1) to '{out}/w.csv') from x) from y",
        "explain analyze copy (select 1) to '{out}/w.csv'",
        "select 1; copy (select 1) to '{out}/w.csv'",
        "select 1) to '{out}/w.csv'; --",
        "export database '{out}/w'",
        "attach '{out}/w.db'",
        "install httpfs",
        "load httpfs",
        "set enable_external_access = true",
        "reset lock_configuration",
        "create table t (i int)",
        "drop view labels",
        "call enable_logging(storage = 'file', storage_path = '{out}/w')",
        "prepare p as copy (select 1) to '{out}/w.csv'",
        "",
        "selec 1",
    ],
)
def test_nothing_gets_out(out, text):
    (out.parent / "secret.txt").write_text("secret")
    connection, before = sql.connect(out), sorted(out.rglob("*"))
    with pytest.raises(FairfaceError, match=r".+") as caught:
        sql.query(connection, text.format(out=out))
    assert "\n" not in str(caught.value)
    assert sorted(out.rglob("*")) == before
    assert sql.query(connection, "select count(*) as n from labels")["n"][0] == 10


@pytest.mark.parametrize(
    "text", ["from runs", "select 1 -- why", "describe labels", "select 'a;b';", "summarize steps"]
)
def test_reading_is_free(out, text):
    assert sql.query(sql.connect(out), text).height


def test_folders_with_odd_names(out):
    odd = out.rename(out.with_name("it's [1] * odd?"))
    assert sql.ask(sql.connect(odd), "distribution", source="train")["count"].sum() == 4


def test_a_broken_file_is_named(out):
    (out / "shards" / "labels.parquet").write_bytes(b"not Parquet")
    with pytest.raises(FairfaceError, match=r"labels\.parquet"):
        sql.connect(out)


def test_training_labels_of_another_labeller_never_stand_beside_a_runs(out):
    path = out / "runs" / "new" / "labels.parquet"
    pl.read_parquet(path).with_columns(labeller=pl.lit("other@2")).write_parquet(path)
    connection = sql.connect(out)
    assert set(sql.ask(connection, "distribution", run="new")["source"]) == {"generated", "annotated"}
    assert set(sql.ask(connection, "distribution", run="old")["source"]) == {"train", "generated", "annotated"}
    assert sql.ask(connection, "sides", run="new")["train"].sum() == 0
    assert sql.ask(connection, "sides", run="old")["train"].sum() == 4


def test_folders_that_are_links_are_read_and_nothing_else_beside_them(out, tmp_path_factory):
    disk = tmp_path_factory.mktemp("disk")
    (out / "shards").rename(disk / "shards")
    (out / "shards").symlink_to(disk / "shards")
    (out / "runs" / "new").rename(disk / "another-name")
    (out / "runs" / "new").symlink_to(disk / "another-name")
    (disk / "shards" / "secret.txt").write_text("secret")
    connection = sql.connect(out)
    assert sql.ask(connection, "distribution", source="train")["count"].sum() == 4
    assert sql.ask(connection, "loss_curves", run="new", points=2).height == 2  # named as below OUT
    assert sql.ask(connection, "runs")["run"].to_list() == ["new", "old"]
    (disk / "x.txt").write_text("secret")
    for path in (disk / "shards" / "secret.txt", out / "shards" / "secret.txt", out / "shards" / ".." / "x.txt"):
        with pytest.raises(FairfaceError, match=r".+"):
            sql.query(connection, f"from read_text('{path}')")
