"""The page: what it says, what it never lets through, what it needs."""

import json
import os
import re
import shutil

import numpy as np
import polars as pl
import pytest

import sql
from reports import contents, figures, page, verdict
from shards.errors import FairfaceError
from tests.reports.outs import HOSTILE, text_of


@pytest.fixture
def html(built):
    return (built / "report" / "index.html").read_text()


def test_a_demonstration_says_so_first_and_is_whole(built, html):
    assert text_of(html.split("<body>")[1]).strip().startswith("Drawn faces: this is a demonstration")
    assert html.count("<svg ") == 8
    assert html.count("data:image/webp;base64,") > 3
    assert "not to be trusted" not in html
    for name in ("Wilson", "floor", "CC BY-NC-ND 4.0", "step-10.pt", "seed 7", "abababab", "64 images a second"):
        assert name in text_of(html), name
    for name in ("comparison-gender", "ratios", "losses"):
        assert (built / "report" / f"{name}.svg").exists()
        assert (built / "report" / f"{name}.png").exists()
        assert ">drawn faces<" in (built / "report" / f"{name}.svg").read_text()


def test_the_page_fetches_nothing(html):
    assert not re.search(r"<script|<link|@import|url\((?!#)", html)
    assert {u for u in re.findall(r'(?:src|href)="([^"]{,30})', html) if not u.startswith(("data:", "#"))} == set()


def test_json_holds_the_same_numbers(built):
    report = json.loads((built / "report" / "report.json").read_text())
    table = pl.read_parquet(built / "report" / "estimates.parquet")
    keys = ["attribute", "group"]
    assert pl.DataFrame(report["estimates"]).sort(keys)["ratio"].equals(table.sort(keys)["ratio"])
    assert report["drawn"] is True
    assert report["verdict"]


def test_nothing_is_built_twice(built, html):
    assert not page.build(built)[1]
    mark = page.inputs(built, "first")
    path = built / "runs" / "first" / "labels.parquet"
    before = path.stat()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert page.inputs(built, "first") != mark
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert page.build(built, force=True)[1]


def test_real_faces_with_the_embedded_labeller_are_warned_about(world):
    html = page.build(world(drawn=False, annotated=False))[0].read_text()
    text = text_of(html)
    assert "Real faces:" in text
    assert "not to be trusted" in text
    assert "No answer" in text
    assert "No: it drew" not in text
    assert "times as many" not in text
    assert "no annotations" in text
    assert "may be shown with attribution" in text
    assert "drawn faces<" not in html


def test_hostile_names_come_out_as_text(world):
    out = world(run=HOSTILE.replace("/", "|"))
    path = next((out / "runs").glob("*/config.json"))
    config = json.loads(path.read_text())
    config["data"]["root"], config["command"] = "<i>" + "y" * 1_000_000, "<b>" + "z" * 1_000_000
    path.write_text(json.dumps(config | {"data_before": [config["data"]]}))
    labels = pl.read_parquet(out / "shards" / "labels.parquet")
    strange = pl.Series(["NULL", HOSTILE, "a\x00b\nc", "x" * 1_000_000] + ["NULL"] * (len(labels) - 4))
    labels.with_columns(gender=strange).write_parquet(out / "shards" / "labels.parquet")
    html = page.build(out)[0].read_text()
    assert "<script" not in html
    assert "<b>S</b>" not in html
    assert "&lt;b&gt;S&lt;/b&gt;" in html
    assert "NULL" in text_of(html)
    assert "x" * 100 not in html
    assert "y" * 400 not in html
    assert "z" * 1100 not in html
    assert "<i>" not in html
    assert len(html) < 3_000_000


def test_a_run_without_faces_or_steps_still_has_a_page(world):
    out = world()
    (out / "runs" / "first" / "samples" / "s.tar").unlink()
    (out / "runs" / "first" / "steps.parquet").unlink()
    (out / "shards" / "a.tar").unlink()
    text = text_of(page.build(out)[0].read_text())
    assert "not where the tables say" in text
    assert "No steps were recorded" in text


def test_one_group_only(world):
    out = world()
    for path in (out / "shards" / "labels.parquet", out / "runs" / "first" / "labels.parquet"):
        pl.read_parquet(path).with_columns(gender=pl.lit("male"), age=pl.lit(None, pl.String)).write_parquet(path)
    text = text_of(page.build(out)[0].read_text())
    assert "women" in text
    assert "no labels" in text  # of ages


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda out: (out / "runs" / "first" / "config.json").unlink(), "fairface train"),
        (lambda out: (out / "shards" / "shards.json").write_text('{"manifest": "cd"}'), "trained on other shards"),
        (lambda out: (out / "runs" / "first" / "config.json").write_text("{"), "config.json"),
        (lambda out: (out / "runs" / "first" / "samples.json").write_text('{"manifest": "cd"}'), "other images: run"),
    ],
)
def test_what_is_missing_is_named_in_one_line(world, spoil, says):
    out = world()
    spoil(out)
    with pytest.raises(FairfaceError, match=says) as caught:
        page.build(out)
    assert "\n" not in str(caught.value)
    assert not (out / "report" / "index.html").exists()


def unlabel(out):
    (out / "runs" / "first" / "labels.parquet").unlink()


def unsample(out):
    unlabel(out)
    (out / "runs" / "first" / "samples.parquet").unlink()


@pytest.mark.parametrize(
    ("spoil", "says", "shows"),
    [
        (unlabel, "run first have no labels: run `fairface label --run first`", "1,200 100 %"),
        (unsample, "run `fairface sample --run first`, then `fairface label --run first`", "Losses"),
        (lambda out: (out / "shards" / "labels.parquet").unlink(), "training images have no labels", "400"),
        (
            lambda out: (out / "runs/first/labels.json").write_text('{"skin": 1}'),
            "of run first was not finished",
            "400",
        ),
        (lambda out: (out / "shards/labels.json").write_text('{"skin": 1}'), "images was not finished", "400"),
    ],
)
def test_a_run_that_lacks_a_stage_has_a_page_that_says_so(world, spoil, says, shows):
    out = world()
    page.build(out)
    spoil(out)
    path, built = page.build(out)
    text = text_of(path.read_text())
    assert built
    assert "Not answered yet. " in text
    assert says in text
    assert shows in text
    assert "Amplified or preserved?" not in text
    assert sql.query(sql.connect(out), "from estimates").is_empty()  # the old ones are not left to be believed
    assert not page.build(out)[1]


def test_labels_from_elsewhere_have_a_page_without_a_verdict(world):
    out = world()
    path = out / "runs" / "first" / "labels.parquet"
    pl.read_parquet(path).with_columns(method=pl.lit("imported"), labeller=pl.lit("theirs")).write_parquet(path)
    text = text_of(page.build(out)[0].read_text())
    assert "were made elsewhere" in text
    assert "Not answered yet" in text


def test_thirty_cells_are_shown_empty_ones_too(built, html):
    cells = sql.ask(sql.connect(built), "comparison", attribute="intersection_age")
    assert len(cells) == 30
    assert html.count('<td class="none">') == cells.filter(pl.col("count") == 0).height
    assert not cells["corrected"].is_not_null().any()
    assert "30 cells are too many" in cells["note"][0]


def test_faces_of_every_group_stand_beside_real_ones(built, html):
    assert html.count('alt="Generated faces: ') > 10
    assert html.count('alt="Generated faces: ') + html.count(">no generated face<") == 26
    assert html.count('alt="Training faces: ') > 10


def test_damaged_pictures_cost_the_picture_alone(world):
    out = world()
    tar = out / "runs" / "first" / "samples" / "s.tar"
    tar.write_bytes(tar.read_bytes()[:30_000])
    train = bytearray((out / "shards" / "a.tar").read_bytes())
    train[512:700] = bytes(188)
    (out / "shards" / "a.tar").write_bytes(train)
    numbers = json.loads((page.build(out)[0].parent / "report.json").read_text())
    assert numbers["estimates"]
    html = (out / "report" / "index.html").read_text()
    pictured = int(re.search(r"Generated: the first (\d+), unchosen", html)[1])
    assert 0 < pictured < 48


def test_a_page_is_built_again_when_its_pictures_or_its_rows_are_gone(world):
    out = world()
    page.build(out)
    (out / "runs" / "first" / "samples" / "s.tar").rename(out / "s.tar")
    path, built = page.build(out)
    assert built
    assert "images not here" in path.read_text()
    (out / "s.tar").rename(out / "runs" / "first" / "samples" / "s.tar")
    assert page.build(out)[1]
    table = pl.read_parquet(out / "report" / "estimates.parquet")
    table.clear().write_parquet(out / "report" / "estimates.parquet")
    assert page.build(out)[1]
    assert len(pl.read_parquet(out / "report" / "estimates.parquet")) == len(table)


def test_figures_of_the_page_before_do_not_stay(world):
    out = world()
    page.build(out)
    unlabel(out)
    page.build(out)
    names = {path.name for path in (out / "report").iterdir()}
    assert "losses.svg" in names
    assert not {"ratios.svg", "comparison-gender.png"} & names


def test_groups_that_nobody_expected_do_not_shift_the_thirty_cells(world):
    out = world()
    path = out / "runs" / "first" / "labels.parquet"
    labels = pl.read_parquet(path)
    gender = pl.when(pl.int_range(pl.len()) < 40).then(pl.lit("NULL")).otherwise("gender")
    labels.with_columns(gender=gender).write_parquet(path)
    text = text_of(page.build(out)[0].read_text())
    rows = text[text.index("skin group and age together") :].split("Ask it yourself")[0]
    assert "NULL, light" not in rows
    assert "Further cells: NULL-" in rows


def test_faces_of_unknown_origin_are_called_neither_real_nor_drawn(world):
    out = world()
    for path in (out / "runs" / "first" / "config.json", out / "shards" / "shards.json"):
        about = json.loads(path.read_text())
        about.pop("drawn", None), about.get("data", {}).pop("drawn", None)
        path.write_text(json.dumps(about))
    text = text_of(page.build(out)[0].read_text())
    assert "Faces of unknown origin" in text
    assert "Real faces" not in text
    shards = out / "shards" / "shards.json"
    shards.write_text(json.dumps(json.loads(shards.read_text()) | {"drawn": True}))
    assert "Drawn faces:" in text_of(page.build(out)[0].read_text())  # an imported run's training images


def test_a_remembered_face_is_found(world):
    out = world()
    generator = np.random.default_rng(0)
    real = generator.normal(size=(300, 16))
    real /= np.linalg.norm(real, axis=1, keepdims=True)
    drawn = generator.normal(size=(60, 16))
    drawn[7] = real[40] + 0.001
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    for folder, vectors in ((out / "shards", real), (out / "runs" / "first", drawn)):
        keys = [f"{i:09d}" for i in range(len(vectors))]
        kind = pl.Array(pl.Float16, 16)
        table = pl.DataFrame({"key": keys, "embedding": vectors.tolist()}, schema_overrides={"embedding": kind})
        table.write_parquet(folder / "embeddings.parquet")
    page.build(out)
    found = sql.ask(sql.connect(out), "neighbours")
    assert found.row(0)[:2] == ("000000007", "000000040")
    assert found["similarity"][0] > 0.999
    assert found["similarity"][1] < 0.95
    assert found["searched"][0] == 60
    among = sql.ask(sql.connect(out), "neighbours", source="train")
    assert among["similarity"][0] < 0.999  # no image is its own neighbour
    brute = real.astype(np.float16).astype(np.float32)
    similar = brute @ brute.T - 2 * np.eye(300)
    best = {f"{i:09d}": f"{similar[i].argmax():09d}" for i in range(64)}
    assert dict(among.select("key", "nearest").iter_rows()) == best
    assert json.loads((out / "report" / "report.json").read_text())["near"][0]["key"] == "000000007"
    path = out / "shards" / "embeddings.parquet"
    content = path.read_bytes()
    for damage in (content[:-50], b"", content[:200] + bytes(400) + content[600:]):
        path.write_bytes(damage)
        with pytest.raises(FairfaceError, match=r"embeddings\.parquet can't be read"):
            page.build(out, force=True)
    path.write_bytes(content)
    page.build(out)
    assert "Is it drawing from memory?" in (out / "report" / "index.html").read_text()


def test_two_labellers_are_not_compared(world):
    out = world()
    path = out / "shards" / "labels.parquet"
    pl.read_parquet(path).with_columns(labeller=pl.lit("ViT-B-32@99")).write_parquet(path)
    with pytest.raises(FairfaceError, match="one labeller"):
        page.build(out)


def test_estimates_of_another_labeller_do_not_stay(world):
    out = world(run="older")
    page.build(out)
    shutil.copytree(out / "runs" / "older", out / "runs" / "newer")
    path = out / "runs" / "newer" / "config.json"
    path.write_text(path.read_text().replace("older", "newer").replace("2026-01-01", "2026-01-02"))
    labels = out / "runs" / "newer" / "labels.parquet"
    pl.read_parquet(labels).with_columns(run=pl.lit("newer")).write_parquet(labels)
    page.build(out)
    assert set(pl.read_parquet(out / "report" / "estimates.parquet")["run"]) == {"older", "newer"}
    for path in (out / "shards" / "labels.parquet", labels):
        pl.read_parquet(path).with_columns(labeller=pl.lit("other@2")).write_parquet(path)
    page.build(out)
    for name in ("estimates", "readings", "distances"):
        assert set(pl.read_parquet(out / "report" / f"{name}.parquet")["run"]) == {"newer"}


def test_an_unknown_run_is_refused(world):
    with pytest.raises(FairfaceError, match="no run 'other'"):
        page.build(world(), ["other"])


def row(group, share, reference, verdict, attribute="gender"):
    ratio = share / reference if reference else None
    values = {"attribute": attribute, "group": group, "share": share, "reference": reference, "ratio": ratio}
    return {**values, "verdict": verdict, "count": round(share * 100)}


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            [row("female", 0.62, 0.61, "preserved"), row("male", 0.38, 0.39, "preserved")],
            "kept the gender balance of its training data (62 % women, training 61 %).",
        ),
        (
            [row("female", 0.3, 0.6, "reduced"), row("male", 0.7, 0.4, "amplified")],
            "0.50 times as many women (30 %, training 60 %) and 1.7 times as many men",
        ),
        (
            [row("female", 0.0, 0.01, "reduced"), row("male", 1.0, 0.99, "preserved")],
            "no women at all (0 %, training 1.0 %).",
        ),
        (
            [row("female", 0.5, 0.0, "amplified"), row("male", 0.5, 1.0, "reduced")],
            "women, whom its training data lack",
        ),
        (
            [row("female", 0.6, 0.5, "inconclusive"), row("male", 0.4, 0.5, "inconclusive")],
            "too few to tell whether it kept the gender balance",
        ),
        (
            [row("female", 0.9, 0.9, "preserved"), row("male", 0.1, 0.1, "inconclusive")],
            "it kept women (90 %, training 90 %); there are too few men to tell",
        ),
    ],
)
def test_the_verdict_is_a_sentence(rows, says):
    assert says in verdict.clause("gender balance", "genders", pl.DataFrame(rows))


def test_numbers_as_people_write_them():
    assert [figures.percent(x) for x in (None, 0, 0.004, 0.0996, 0.62, 1)] == [
        "–",
        "0 %",
        "0.4 %",
        "10 %",
        "62 %",
        "100 %",
    ]
    assert [figures.times(x) for x in (None, 0.0, 0.034, 0.37, 0.95, 1.42)] == [
        "–",
        "×0",
        "×0.03",
        "×0.37",
        "×0.9",
        "×1.4",
    ]


def test_what_was_asked_for_is_said_and_not_blamed_on_the_generator(world):
    out = world()
    run = out / "runs" / "first"
    config = json.loads((run / "config.json").read_text())
    assert (contents.requested(config, {}), contents.weighted(config)) == ([], None)
    config |= {"classes": {"female": 0.5, "male": 0.5}}
    config["options"] |= {"balance": "uniform", "balance_by": "gender"}
    (run / "config.json").write_text(json.dumps(config))
    text = text_of(page.build(out)[0].read_text())
    assert "was shown the groups of gender equally often" in text
    assert "No: it drew" in text
    (run / "samples.json").write_text(json.dumps({"shares": {"female": 1.0, "male": 0.0}}))
    text = text_of(page.build(out)[0].read_text())
    assert "It was asked to: " in text
    assert "The samples were asked to be female" in text
    assert "No: it drew" not in text
    assert contents.requested(config, {"shares": config["classes"]}) == []


def test_a_run_that_changed_its_data_on_the_way_says_so(world):
    out = world()
    path = out / "runs" / "first" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data_before": [{"root": "/older"}]}))
    assert "The run began on other images (/older)" in text_of(page.build(out)[0].read_text())


def test_what_nobody_labelled_is_not_called_too_few(world):
    out = world()
    for path in (out / "shards" / "labels.parquet", out / "runs" / "first" / "labels.parquet"):
        pl.read_parquet(path).with_columns(age=pl.lit(None, pl.String)).write_parquet(path)
    text = text_of(page.build(out)[0].read_text())
    assert "The balance of ages is not known: no face was labelled for it." in text
    assert "too few to tell whether it kept the balance of ages" not in text


def test_detectors_are_shown_with_what_they_say_of_samples(world):
    """Test faces with their annotated groups, changed ones, and this run's samples by the labeller's word."""
    world = world()
    rng, folder = np.random.default_rng(0), world / "detectors" / "<b>mine"
    folder.mkdir(parents=True)
    images = pl.read_parquet(world / "shards" / "images.parquet")["key"][:300]
    samples = pl.read_parquet(world / "runs" / "first" / "samples.parquet")["key"]
    fake, noise = rng.random(300) < 0.5, rng.normal(size=400)
    columns = ["part", "source", "run", "change", "grouped_by"]
    sights = [
        (images, fake, ["test", "images", None, "none", "annotated"]),
        (images, fake, ["test", "images", None, "gaussian_blur", "annotated"]),
        (samples, np.ones(len(samples), bool), ["samples", "samples", "first", "none", "labelled"]),
    ]
    rows = [
        pl.DataFrame({"key": keys, "target": np.where(one, "fake", "real"), "logit": 2 * one - 1 + noise[: len(keys)]})
        .with_columns(pl.lit(value, pl.String).alias(name) for name, value in zip(columns, values, strict=True))
        .with_columns(detector=pl.lit("<b>mine"))
        for keys, one, values in sights
    ]  # fmt: skip
    pl.concat(rows).write_parquet(folder / "predictions.parquet")
    html = page.build(world)[0].read_text()
    said = text_of(html)
    assert "<b>mine" not in html
    assert f"{(~fake).sum()} real faces and {fake.sum()} fakes among the images" in said
    assert "And after what happens to pictures?" in said
    assert "gaussian blur" in said
    connection = sql.connect(world)
    whole = sql.ask(connection, "detected", run="first").filter(attribute="all").row(0, named=True)
    assert f"all samples 400 {100 * whole['rate']:.1f} %" in said
    women = sql.ask(connection, "detected", run="first").filter(group="female").row(0, named=True)
    labels = pl.read_parquet(world / "runs" / "first" / "labels.parquet")
    assert women["n"] == (labels["gender"] == "female").sum()
    assert (
        f"female {women['n']} {100 * women['rate']:.1f} % {100 * women['low']:.1f} to {100 * women['high']:.1f} %"
        in said
    )
    before = (folder / "detection.parquet").stat().st_mtime_ns
    assert not page.build(world)[1]
    labels.with_columns(gender=pl.lit("male")).write_parquet(world / "runs" / "first" / "labels.parquet")
    page.build(world)  # other groups, other figures
    assert (folder / "detection.parquet").stat().st_mtime_ns > before
