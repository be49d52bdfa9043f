"""Labels from elsewhere: the original's CSV, its published distributions, and files that are refused."""

import os
import re
from operator import attrgetter
from pathlib import Path

import polars as pl
import pytest

import sql
from pipeline.labelling.import_labels import import_labels, read_csv_text
from pipeline.labelling.label import LabelConfig, label
from shards.csv_output import escape_formulas
from shards.documents import LabelsDocument, file_hashes, read_document, samples_images_hash, write_document
from shards.errors import FairfaceError
from shards.locks import LockHeld, exclusive_lock
from shards.workspace import Workspace
from tests.pipeline.labelling.conftest import stop_after, write_samples_document
from tests.reports.fake_workspace import shards_document

REFERENCE = Path(__file__).parents[4] / "shared" / "reference" / "fairface-generator"
PUBLISHED = """Image Path,GenderPrompt,GenderIdx,GenderProb_man,GenderProb_woman,SkinPrompt,SkinTonePred
g/sample_00000.png,a photo of a woman,1,0.15,0.85,a person with beige skin,4
g/sample_00001.png,a photo of a man,0,0.9,0.1,a person with light skin,2
"""
has_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="the original's published tables are not available")


def test_the_originals_labels_become_a_run(tmp_path):
    csv, workspace = tmp_path / "theirs.csv", Workspace(tmp_path / "out")
    csv.write_text(PUBLISHED)
    imported = import_labels(workspace, csv)
    assert (imported.images, imported.folder.name) == (2, "theirs")
    labels = pl.read_parquet(imported.folder.label_files.labels)
    assert labels.select("key", "source", "run", "method", "gender", "skin_tone").rows() == [
        ("00000000", "generated", "theirs", "imported", "female", 4),
        ("00000001", "generated", "theirs", "imported", "male", 2),
    ]
    assert labels["p_gender"].list.get(0).to_list() == pytest.approx([0.85, 0.1])
    answer = sql.ask(sql.connect(workspace), "distribution", run="theirs")
    assert answer.rows() == [("generated", "female", 1, 0.5), ("generated", "male", 1, 0.5)]


def test_files_that_belong_to_no_run_are_kept(tmp_path):
    csv, workspace = tmp_path / "theirs.csv", Workspace(tmp_path / "out")
    csv.write_text(PUBLISHED)
    precious = workspace.run("theirs").label_files.pixels
    precious.parent.mkdir(parents=True)
    precious.write_text("precious")
    with pytest.raises(FairfaceError, match="holds files that don't belong to a run: choose another --run"):
        import_labels(workspace, csv, force=True)
    assert precious.read_text() == "precious"
    assert not workspace.run("theirs").config.exists()


@has_reference
def test_the_published_distributions_of_samples_are_reproduced_exactly(tmp_path):
    workspace = Workspace(tmp_path)
    import_labels(workspace, REFERENCE / "dcgan_gan_subset_clip_labels.csv", run="published")
    connection = sql.connect(workspace)
    for name, attribute in (("GenderIdx", "gender"), ("SkinTonePred", "skin_tone")):
        published = pl.read_csv(REFERENCE / f"generated_{name}_distribution.csv")
        groups = published[name].cast(pl.String).replace({"0": "male", "1": "female"} if attribute == "gender" else {})
        ours = sql.ask(connection, "distribution", attribute=attribute, run="published")
        assert dict(zip(ours["group"], ours["count"], strict=True)) == dict(
            zip(groups, published["count"], strict=True)
        )
        assert dict(zip(ours["group"], (100 * ours["share"]).round(2), strict=True)) == dict(
            zip(groups, published["percent"], strict=True)
        )


def original_training_images(tables):
    """The original's 135,766 annotated rows, rebuilt from the published counts of tones and of gender by skin group."""
    tones = tables["skin_tone"].select(pl.col("Skin Tone").repeat_by("count").explode()).to_series().sort()
    group = pl.when(pl.col("skin_tone") < 4).then(pl.lit("light")).when(pl.col("skin_tone") < 7).then(pl.lit("medium"))
    images = tones.cast(pl.Int8).to_frame("skin_tone").with_columns(skin_group=group.otherwise(pl.lit("dark")))
    women = dict(tables["intersection"].filter(pl.col("Intersection") < 3).select("Intersection", "count").iter_rows())
    position = pl.int_range(pl.len()).over("skin_group")
    limit = pl.col("skin_group").replace_strict(
        {"light": women[0], "medium": women[1], "dark": women[2]}, return_dtype=pl.Int64
    )
    gender = pl.when(position < limit).then(pl.lit("female")).otherwise(pl.lit("male"))
    constants = {"status": "packed", "target": "fake", "family": "GANs"}
    return images.with_columns(
        pl.int_range(pl.len()).cast(pl.String).alias("key"),
        gender.alias("gender"),
        *(pl.lit(value).alias(name) for name, value in constants.items()),
    )


@has_reference
def test_the_published_distributions_of_training_images_are_reproduced_exactly(tmp_path):
    workspace = Workspace(tmp_path)
    tables = {name: pl.read_csv(REFERENCE / f"train_{name}_distribution.csv") for name in ("skin_tone", "intersection")}
    workspace.shards.folder.mkdir()
    original_training_images(tables).write_parquet(workspace.shards.images)
    write_document(workspace.shards.document, shards_document())
    connection = sql.connect(workspace)
    codes = ["female-light", "female-medium", "female-dark", "male-light", "male-medium", "male-dark"]
    for attribute, published in tables.items():
        ours = sql.ask(connection, "distribution", attribute=attribute, source="annotated")
        groups = (
            [codes[i] for i in published["Intersection"]] if attribute == "intersection" else published["Skin Tone"]
        )
        assert ours["group"].to_list() == [str(group) for group in groups]
        assert ours["count"].to_list() == published["count"].to_list()
        assert (100 * ours["share"]).round(2).to_list() == published["percent"].to_list()
    assert sql.ask(connection, "target").rows() == [("fake", "GANs", 135_766, 1.0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "neither our columns"),
        (PUBLISHED.replace(",4\n", ",11\n"), "'11' is not a valid skin_tone"),
        (PUBLISHED.replace(",1,0.15", ",2,0.15"), "'2' is not a valid gender"),
        (PUBLISHED.replace("0.85", "much"), "not a number"),
        (PUBLISHED.replace("sample_00001", "sample_00000"), "an image twice"),
        (PUBLISHED.split("\n")[0] + "\n", "has no labels"),
        ("", "can't be read as CSV"),
        (PUBLISHED.replace("0.85", "8.5"), "is not between 0 and 1"),
        (PUBLISHED.replace("GenderIdx", "SkinTonePred", 1), "neither the original|twice"),
        (re.sub("^[^,\n]*sample_00001[^,\n]*,", ",", PUBLISHED, flags=re.M), "row 2 names no image"),
    ],
)
def test_invalid_files_are_refused_in_one_line_and_leave_nothing(tmp_path, text, message):
    csv = tmp_path / "theirs.csv"
    csv.write_text(text)
    with pytest.raises(FairfaceError, match=message) as error:
        import_labels(Workspace(tmp_path / "out"), csv)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_imported_labels_must_match_the_samples_and_replace_others_only_with_force(workspace, tmp_path):
    csv, run = tmp_path / "theirs.csv", workspace.run("mine")
    csv.write_text(PUBLISHED)
    with pytest.raises(FairfaceError, match="don't match"):
        import_labels(workspace, csv, run="mine")
    pl.DataFrame({"key": ["00000000", "00000001"]}).write_parquet(run.samples_table)
    write_samples_document(run, [])
    old = LabelsDocument(source="generated", run="mine", labeller="other", size=64, images=2, fingerprint="", files={})
    write_document(run.label_files.document, old)
    with pytest.raises(FairfaceError, match="has labels of other"):
        import_labels(workspace, csv, run="mine")
    assert import_labels(workspace, csv, run="mine", force=True).images == 2


def test_an_import_states_the_samples_that_it_belongs_to(workspace, tmp_path):
    csv, run = tmp_path / "theirs.csv", workspace.run("mine")
    csv.write_text(PUBLISHED)
    imported = import_labels(workspace, csv).folder
    assert read_document(imported.label_files.document, LabelsDocument).images_hash is None
    pl.DataFrame({"key": ["00000000", "00000001"]}).write_parquet(run.samples_table)
    write_samples_document(run, [])
    import_labels(workspace, csv, run="mine")
    document = read_document(run.label_files.document, LabelsDocument)
    assert document.images_hash == samples_images_hash(run) == "f"
    assert document.files == file_hashes(run.label_files.labels)
    pl.DataFrame({"key": ["00000001", "00000000"]}).write_parquet(run.samples_table)
    with pytest.raises(FairfaceError, match=r"samples\.parquet was changed"):
        import_labels(workspace, csv, run="mine", force=True)


@pytest.mark.parametrize("lock", ["lock", "samples_lock", "label_files.lock"])
def test_an_import_is_refused_while_another_command_writes(tmp_path, lock):
    csv, workspace = tmp_path / "theirs.csv", Workspace(tmp_path / "out")
    csv.write_text(PUBLISHED)
    run = import_labels(workspace, csv).folder
    before = {path: path.read_bytes() for path in run.folder.iterdir()}
    csv.write_text(PUBLISHED.replace(",4\n", ",5\n"))
    with (
        exclusive_lock(attrgetter(lock)(run), "a test"),
        pytest.raises(LockHeld, match=r"another process is using .*before importing labels"),
    ):
        import_labels(workspace, csv, force=True)
    assert {path: path.read_bytes() for path in before} == before


def test_a_killed_forced_import_is_not_unchanged_with_labels_of_two_kinds(workspace, tmp_path, monkeypatch):
    """Labels of a run, then other labels imported over them, stopped at every rename or removal of a file."""
    csv, files = tmp_path / "theirs.csv", workspace.run("mine").label_files
    label(workspace, LabelConfig(progress=False))
    before = {path: path.read_bytes() for path in files.all() if path.exists()}
    assert len(before) == 6
    keys = pl.read_parquet(files.labels)["key"]
    csv.write_text("Image Path,gender,age,skin_tone\n" + "".join(f"{key},male,,4\n" for key in keys))
    for steps in range(30):
        for path, content in before.items():
            path.write_bytes(content)
        with monkeypatch.context() as patch:
            stop_after(patch, steps)
            try:
                import_labels(workspace, csv, run="mine", force=True)
                break
            except KeyboardInterrupt:
                pass
        document = read_document(files.document, LabelsDocument)
        if document:
            assert {path: path.read_bytes() for path in before} == before
        import_labels(workspace, csv, run="mine", force=True)
        assert [path for path in files.all() if path.exists()] == [files.document, files.labels]
    assert steps > 6


@pytest.mark.parametrize("name", ["a*.csv", "[x].csv", "all.csv", "newest.csv", "-x.csv"])
def test_a_csv_whose_name_is_not_a_valid_run_name_needs_another(tmp_path, name):
    csv, workspace = tmp_path / name, Workspace(tmp_path / "out")
    csv.write_text(PUBLISHED)
    with pytest.raises(FairfaceError, match="choose one with --run"):
        import_labels(workspace, csv)
    assert not workspace.root.exists()
    assert import_labels(workspace, csv, run="theirs").images == 2


def test_labels_with_formulas_are_imported_as_they_were_exported(tmp_path):
    paths = ["=cmd()/a.png", "'=b", "-c", "@d", "e"]
    exported = escape_formulas(pl.DataFrame({"Image Path": paths, "gender": "male", "age": "", "skin_tone": "4"}))
    assert exported["Image Path"].to_list() == ["'=cmd()/a.png", "''=b", "'-c", "'@d", "e"]
    exported.write_csv(tmp_path / "theirs.csv")
    run = import_labels(Workspace(tmp_path / "out"), tmp_path / "theirs.csv").folder
    assert pl.read_parquet(run.label_files.labels)["key"].to_list() == paths


@pytest.mark.parametrize(
    "content",
    [
        b"Image Path,gender,age,skin_tone\n" + b"x" * 10_000_000 + b",male,,4",
        b"Image Path,gender,age,skin_tone\na\0b.png," + b"m" * 1_000_000 + b",,4\n",
        b"\0" * 1000,
        b"\xff\xfe" + "Image Path,gender,age,skin_tone\na,male,,4\n".encode("utf-16-le"),
        b"Image Path,gender,age,skin_tone\na,male,,4,5,6\n",
        b'Image Path,gender,age,skin_tone\n"a,male,,4\n',
        b"Image Path,gender,age,skin_tone,p_gender_female,p_gender_male\na,male,,4,0,1e999\n",
        b"Image Path,gender,age,skin_tone\n" + b"sample_" + b"9" * 5000 + b".png,male,,4\n",
        b"PAR1" + bytes(100),
    ],
)
def test_files_of_any_shape_are_imported_or_refused_in_one_short_line(tmp_path, content):
    csv = tmp_path / "theirs.csv"
    csv.write_bytes(content)
    message = ""
    try:
        assert import_labels(Workspace(tmp_path / "out"), csv).images == 1
    except FairfaceError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 700


@pytest.mark.parametrize("kind", ["fifo", "loop", "device", "folder"])
def test_anything_but_a_regular_file_is_refused_at_once(tmp_path, kind):
    csv = tmp_path / "theirs.csv"
    if kind == "fifo":
        os.mkfifo(csv)
    elif kind == "folder":
        csv.mkdir()
    else:
        csv.symlink_to(csv if kind == "loop" else "/dev/zero")
    with pytest.raises(FairfaceError, match="there is no such file"):
        import_labels(Workspace(tmp_path / "out"), csv)
    with pytest.raises(FairfaceError, match=r"regular|can't be read"):
        read_csv_text(csv)
    assert not (tmp_path / "out").exists()


def test_rows_without_all_probabilities_have_none(tmp_path):
    csv, workspace = tmp_path / "theirs.csv", Workspace(tmp_path / "out")
    rows = ["a.png,female,0.9,0.1", "b.png,male,,", "c.png,male,0.2,"]
    csv.write_text("\n".join(["Image Path,gender,p_gender_female,p_gender_male", *rows]) + "\n")
    imported = import_labels(workspace, csv)
    labels = pl.read_parquet(imported.folder.label_files.labels)
    assert labels["p_gender"].is_null().to_list() == [False, True, True]
    confident = sql.ask(sql.connect(workspace), "confidence", run="theirs")
    assert confident.select("key", "probability").rows() == [("a.png", pytest.approx(0.9))]
