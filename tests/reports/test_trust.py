"""What the report refuses, leaves out and keeps: files of other images, damaged ones, files of the user."""

import errno
import json
import os
import re
from dataclasses import replace

import polars as pl
import pytest

import sql
from reports import page, publish
from reports.estimation import distances
from reports.figures.run_figures import RunFigures, draw_run_figures
from shards import atomic_io
from shards.attributes import built_in_attributes
from shards.documents import RunConfig, SamplesDocument, ShardsDocument, read_document, write_document
from shards.errors import FairfaceError
from shards.locks import exclusive_lock
from shards.provenance import current_files
from shards.workspace import Workspace
from tests.reports.fake_workspace import (
    SAMPLES,
    build,
    edit_config,
    edit_document,
    page_text,
    predictions_document,
    record,
    replace_table,
    text_of,
    with_columns,
)
from tests.reports.test_comparison import add_run

pytestmark = pytest.mark.usefixtures("short_reports")


@pytest.fixture(autouse=True)
def few_replicates(monkeypatch):
    """Distances are tested in test_distances.py; with all their replicates they take most of the time."""
    monkeypatch.setattr(distances, "REPLICATES", 20)
    monkeypatch.setattr(distances, "CORRECTED_REPLICATES", 10)


@pytest.fixture(autouse=True)
def plain_figures(monkeypatch):
    """Figures that are drawn in no time, and that show the estimates all the same."""

    def draw(connection, files, *, run, attributes, synthetic):
        rows = sql.ask(connection, "comparison", run=run)
        if len(rows):
            names = [f"comparison-{attribute}.{end}" for attribute in ("gender", "age") for end in ("svg", "png")]
            files |= dict.fromkeys([*names, "ratios.svg"], rows.write_csv().encode())
        files["losses.svg"] = b"losses"
        return RunFigures({}, [], [])

    monkeypatch.setattr(page, "draw_run_figures", draw)
    monkeypatch.setattr(page, "contact_sheets", lambda faces: {"faces-train.png": b"faces"})


def add_detector(out, name="mine", **options):
    """Predictions of 300 images by a detector."""
    folder = out / "detectors" / name
    folder.mkdir(parents=True)
    keys = pl.read_parquet(out / "shards" / "images.parquet")["key"][:300]
    is_fake = pl.int_range(pl.len()) % 2
    table = pl.DataFrame({"key": keys}).with_columns(
        target=pl.when(is_fake == 1).then(pl.lit("fake")).otherwise(pl.lit("real")), logit=(is_fake * 2 - 1).cast(float)
    )
    about = {"detector": name, "part": "test", "source": "images", "grouped_by": "annotated", "perturbation": "none"}
    write_document(folder / "predictions.json", predictions_document(**options))
    replace_table(folder / "predictions.parquet", with_columns(table, **about, run=None).cast({"run": pl.String}))
    return folder


def flip_a_bit(path):
    """Change one bit in the middle of a file, but neither its size nor its time."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def state_of(folder):
    """The bytes of all files in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}


def answer(out, text):
    """Rows of a query on the results below `out`."""
    return sql.select(sql.connect(Workspace(out)), text)


# other images


def sample_again(out):
    edit_document(out / "runs" / "first" / "samples.json", SamplesDocument, fingerprint="other")


def pack_again(out):
    edit_document(out / "shards" / "shards.json", ShardsDocument, manifest="other")
    data = read_document(out / "runs" / "first" / "config.json", RunConfig).data
    edit_config(out, data=replace(data, manifest="other"))
    edit_document(out / "runs" / "first" / "samples.json", SamplesDocument, manifest="other")


@pytest.mark.parametrize(
    ("change", "message"), [(sample_again, "of other samples than"), (pack_again, "of other training images than")]
)
def test_labels_of_other_images_are_never_reported(world, change, message):
    out = world()
    build(out)
    change(out)
    result = build(out)
    assert message in result.missing[0]
    assert "fairface label" in result.missing[0]
    assert "Not answered yet" in text_of(result.page.read_text())
    assert answer(out, "from estimates").is_empty()
    source = "generated" if change is sample_again else "train"
    assert answer(out, f"from labels where source = '{source}'").is_empty()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("runs/first/labels.json", "not finished"),
        ("shards/labels.json", "not finished"),
        ("runs/first/samples.json", "samples in .* are not finished"),
    ],
)
def test_files_of_a_killed_writer_are_never_reported(world, path, message):
    out = world()
    (out / path).unlink()
    (reason,) = build(out).missing
    assert re.search(message, reason)
    assert answer(out, "from estimates").is_empty()


def test_estimates_of_other_labels_are_left_out_of_the_answers(world):
    out = world()
    build(out)
    assert len(answer(out, "from estimates")) == 56
    path = out / "runs" / "first" / "labels.parquet"
    replace_table(path, pl.read_parquet(path).with_columns(gender=pl.lit("male")))
    for view in ("estimates", "method_estimates", "distances", "quality", "neighbours"):
        assert answer(out, f"from {view}").is_empty()
    assert len(answer(out, "from confusion"))  # is of the training images, whose labels are the same
    assert any(
        "estimates of first were not computed from the present labels" in text
        for text in current_files(Workspace(out)).warnings
    )
    build(out)
    assert len(answer(out, "from estimates")) == 56
    path = out / "shards" / "labels.parquet"
    replace_table(path, pl.read_parquet(path).with_columns(gender=pl.lit("male")))
    assert answer(out, "from confusion").is_empty()


def test_tables_without_their_document_are_left_out(world):
    out = world()
    build(out)
    (out / "report" / "tables.json").unlink()
    assert answer(out, "from estimates").is_empty()
    assert build(out).rebuilt
    assert len(answer(out, "from estimates")) == 56


@pytest.mark.parametrize(
    "options", [{"manifest": "other"}, {"samples": {"first": "other"}}, {"samples": {"gone": SAMPLES}}]
)
def test_predictions_of_other_images_are_left_out_with_a_warning(world, options):
    out = world()
    add_detector(out)
    assert "AUC" in page_text(out)
    edit_document(out / "detectors" / "mine" / "predictions.json", type(predictions_document()), **options)
    result = build(out)
    assert any("fairface detect" in warning for warning in result.warnings)
    assert "AUC" not in text_of(result.page.read_text())
    assert answer(out, "from predictions").is_empty()
    assert answer(out, "from detection_metrics").is_empty()


def test_metrics_of_other_predictions_or_groups_are_left_out_and_computed_again(world):
    out = world()
    folder = add_detector(out)
    build(out)
    assert len(answer(out, "from detection_metrics"))
    path = out / "shards" / "images.parquet"
    status = path.stat()
    replace_table(path, pl.read_parquet(path).with_columns(gender=pl.lit("male")))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # file times say nothing
    assert answer(out, "from detection_metrics").is_empty()
    build(out)
    assert set(answer(out, "from detection_metrics where attribute = 'gender' and \"group\" is not null")["group"]) == {
        "male"
    }
    flip_a_bit(folder / "detection_metrics.parquet")
    build(out, force=True)
    text = "select value from detection_metrics where detector = 'mine' and attribute = 'all' and measure = 'auc'"
    assert answer(out, text)["value"].to_list() == [1.0]


# damaged files


def add_probe_and_embeddings(out):
    """Embeddings, labels of the pixels and of a probe for both sides."""
    for folder in (out / "shards", out / "runs" / "first"):
        labels = pl.read_parquet(folder / "labels.parquet")
        vector = pl.Series("embedding", [[1.0] + [0.0] * 7] * len(labels), dtype=pl.Array(pl.Float16, 8))
        replace_table(folder / "embeddings.parquet", labels.select("key").with_columns(vector))
        for name in ("pixels", "probe"):
            replace_table(folder / f"{name}.parquet", labels.with_columns(method=pl.lit(name), labeller=pl.lit(name)))


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("shards/images.parquet", "fairface shards --force"),
        ("shards/labels.parquet", "fairface label --force"),
        ("shards/embeddings.parquet", "fairface label --force"),
        ("shards/pixels.parquet", "fairface label --force"),
        ("shards/probe.parquet", "fairface label --force"),
        ("runs/first/labels.parquet", "fairface label --force"),
        ("runs/first/embeddings.parquet", "fairface label --force"),
        ("runs/first/probe.parquet", "fairface label --force"),
        ("runs/first/samples.parquet", "fairface sample --force"),
        ("runs/first/steps.parquet", "--force"),
        ("detectors/mine/predictions.parquet", "fairface detect"),
    ],
)
def test_a_flipped_bit_is_named_with_the_command(world, name, command):
    out = world()
    add_probe_and_embeddings(out)
    add_detector(out)
    edit_config(out, files=atomic_hashes(out / "runs" / "first" / "steps.parquet"))
    flip_a_bit(out / name)
    with pytest.raises(FairfaceError) as caught:
        build(out, force=True)
    assert str(out / name) in str(caught.value)
    assert command in str(caught.value)


def atomic_hashes(path):
    """The `files` of a document that describes one file."""
    return {path.name: atomic_io.file_sha256(path)}


def test_a_file_rewritten_with_its_document_is_noticed_though_size_and_time_are_the_same(world):
    out = world()
    path = out / "runs" / "first" / "labels.parquet"
    before, status = page.input_fingerprint(Workspace(out), "first", detectors=[]), path.stat()
    flip_a_bit(path)
    record(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert page.input_fingerprint(Workspace(out), "first", detectors=[]) != before


@pytest.mark.parametrize("content", ["", "{}", '{"format": 2, "name": 1}'])
@pytest.mark.parametrize("name", ["config.json", "samples.json", "labels.json"])
def test_a_damaged_document_of_another_run_does_not_stop_the_report(world, name, content):
    out = world()
    add_run(out)
    (out / "runs" / "second" / name).write_text(content)
    result = build(out, "first")
    assert result.missing == []
    assert any(str(out / "runs" / "second" / name) in warning for warning in result.warnings)


def test_a_damaged_config_of_the_named_run_is_an_error(world):
    out = world()
    (out / "runs" / "first" / "config.json").write_text("{}")
    for runs in ((), ("first",)):
        with pytest.raises(FairfaceError, match=r"config\.json is of format"):
            build(out, *runs)


def test_damaged_tables_of_the_report_are_computed_again(world):
    out = world()
    build(out)
    expected = {path: path.read_bytes() for path in (out / "report").glob("*.parquet")}
    for name in ("estimates.parquet", "confusion.parquet"):
        (out / "report" / name).write_bytes(b"PAR1 damaged")
        assert build(out).rebuilt
        assert {path: path.read_bytes() for path in expected} == expected


def test_imported_predictions_without_any_face_are_refused_in_one_line(world):
    out = world()
    folder = add_detector(out)
    replace_table(folder / "predictions.parquet", pl.read_parquet(folder / "predictions.parquet").clear())
    with pytest.raises(FairfaceError, match="no test faces"):
        build(out)


def test_steps_without_numbers_have_no_curves(world):
    out = world()
    path = out / "runs" / "first" / "steps.parquet"
    steps = pl.read_parquet(path)
    for column in (pl.lit(None, pl.Float64), pl.lit(float("nan"))):
        replace_table(path, steps.with_columns(loss_d=column))
        files = {}
        draw_run_figures(
            sql.connect(Workspace(out)), files, run="first", attributes=built_in_attributes(), synthetic=True
        )
        assert set(files) == {"discriminator.svg", "discriminator.png"}


# files that are kept


def test_files_of_the_user_stay_in_the_report(world):
    out = world()
    build(out)
    mine = {"faces-mine.png": b"1", "comparison-notes.pdf": b"2", "ratios.xlsx": b"3", "runs-old.txt": b"4"}
    for name, content in mine.items():
        (out / "report" / name).write_bytes(content)
    (out / "runs" / "first" / "labels.parquet").unlink()
    build(out)
    assert not (out / "report" / "ratios.svg").exists()
    assert {name: (out / "report" / name).read_bytes() for name in mine} == mine


@pytest.mark.parametrize("name", ["index.html", "estimates.parquet", "runs/first/index.html"])
def test_a_page_or_table_of_the_user_is_not_replaced(world, name):
    out = world()
    add_run(out)
    mine = out / "report" / name
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(FairfaceError, match=f"{mine.name} was not written by fairface"):
        build(out, "first", "second")
    assert mine.read_bytes() == b"mine"


def test_it_is_said_whose_estimates_were_removed_with_damaged_tables(world):
    out = world()
    add_run(out)
    build(out, "first", "second")
    path = out / "report" / "tables.json"
    atomic_io.write_json(path, {"format": None, "files": {}})  # as a killed process leaves it
    assert "the estimates of second were removed" in build(out, "first").warnings[0]
    assert answer(out, "select distinct run from estimates")["run"].to_list() == ["first"]


def test_nothing_that_an_edited_report_json_lists_is_removed_elsewhere(world):
    out = world()
    build(out)
    path = out / "report" / "report.json"
    (out / "mine.png").write_bytes(b"1")
    (out / "report" / "notes.txt").write_bytes(b"1")
    atomic_io.write_json(path, {"format": 1, "files": {"../mine.png": "", str(out / "mine.png"): "", "notes.txt": ""}})
    build(out)
    assert (out / "mine.png").exists()
    assert (out / "report" / "notes.txt").exists()


@pytest.mark.parametrize("name", ["runs", "runs/first"])
def test_links_in_the_report_are_refused_before_anything_is_written(world, tmp_path, name):
    out, mine = world(), tmp_path / "mine"
    add_run(out)
    mine.mkdir()
    (mine / "index.html").write_text("mine")
    (out / "report" / name).parent.mkdir(parents=True)
    (out / "report" / name).symlink_to(mine)
    with pytest.raises(FairfaceError, match="is a link"):
        build(out, "first", "second")
    assert state_of(mine) == {"index.html": b"mine"}


def full_disk(monkeypatch, after):
    """No file can be written after the first `after` ones."""
    left = [after]
    atomic_write = atomic_io.atomic_write

    def write(path, **options):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return atomic_write(path, **options)

    for module in (atomic_io, publish):
        monkeypatch.setattr(module, "atomic_write", write)


@pytest.mark.attack
def test_a_full_disk_leaves_the_whole_old_page_or_the_whole_new_one(world, monkeypatch):
    out = world(n=60, m=120)
    build(out)
    old = state_of(out / "report")
    path = out / "runs" / "first" / "labels.parquet"
    replace_table(path, pl.read_parquet(path).with_columns(gender=pl.lit("male")))
    is_page = lambda name: not name.endswith(".parquet") and name != "tables.json"  # noqa: E731
    for after in (0, 3, 7, 8, 9, 12, 15, 17, 100):
        with monkeypatch.context() as patch:
            full_disk(patch, after)
            try:
                build(out)
            except OSError:
                pass
            else:
                break
        now = state_of(out / "report")
        unchanged = {name for name in old if is_page(name) and now.get(name) == old[name]}
        assert unchanged >= {name for name in old if is_page(name)} or 'format": null' in now["report.json"].decode()
        assert not [name for name in now if name.endswith(".partial")]
        assert len(answer(out, "from estimates")) in (0, 56)
    assert after == 100
    assert not build(out).rebuilt


@pytest.mark.attack
def test_a_report_killed_at_any_file_is_completed_by_the_next(world, monkeypatch):
    class Killed(BaseException):
        pass

    out = world(n=60, m=120)
    build(out)
    path = out / "runs" / "first" / "labels.parquet"
    labels, others = pl.read_parquet(path), pl.read_parquet(path).with_columns(gender=pl.lit("male"))
    replace_table(path, others)
    build(out)
    expected = {name: data for name, data in state_of(out / "report").items() if name.endswith((".svg", ".parquet"))}
    replace_os = os.replace
    for kill_at in (1, 4, 8, 11, 15):
        replace_table(path, labels)
        build(out)
        replace_table(path, others)
        count = [0]

        def killed(*arguments, count=count, kill_at=kill_at):
            count[0] += 1
            if count[0] >= kill_at:
                raise Killed
            replace_os(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            with pytest.raises(Killed):
                build(out)
        assert build(out).rebuilt
        now = {name: data for name, data in state_of(out / "report").items() if name.endswith((".svg", ".parquet"))}
        assert now == expected


# locks


@pytest.mark.parametrize(
    "lock", ["shards/.lock", "shards/.labels.lock", "runs/first/.samples.lock", "runs/first/.labels.lock"]
)
def test_nothing_is_reported_while_it_is_written(world, lock):
    out = world()
    with exclusive_lock(out / lock, "x"), pytest.raises(FairfaceError, match="another process is using"):
        build(out)
    assert not (out / "report" / "index.html").exists()


def test_a_detector_in_training_is_left_out_and_added_later(world):
    out = world()
    folder = add_detector(out)
    with exclusive_lock(folder / ".lock", "x"):
        result = build(out)
        assert "detector mine is left out" in result.warnings[0]
        assert "AUC" not in text_of(result.page.read_text())
    result = build(out)
    assert result.rebuilt
    assert "AUC" in text_of(result.page.read_text())


# constant samples


def test_no_verdict_is_given_on_samples_that_are_all_the_same(world):
    out = world(women=0.99)
    assert "No: " in page_text(out)
    edit_document(out / "runs" / "first" / "samples.json", SamplesDocument, is_constant=True)
    text = page_text(out)
    assert "No answer: all samples are the same image, or each has a single colour." in text
    assert "All samples are the same image, or each has a single colour" in text
    assert "times as many women" not in text
    add_run(out)
    build(out, "second", "first")
    report = json.loads((out / "report" / "report.json").read_text())
    assert report["differences"]
    assert report["findings"] == []
