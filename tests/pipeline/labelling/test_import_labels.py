"""Labels from elsewhere: the original's CSV, its published distributions, and files that are refused."""

import re
from pathlib import Path

import polars as pl
import pytest

import sql
from pipeline.labelling.import_labels import import_labels
from shards.documents import LabelsDocument, write_document
from shards.errors import FairfaceError
from shards.workspace import Workspace

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
    assert labels.select("key", "source", "run", "method", "gender", "age", "skin_tone", "p_female").rows() == [
        ("00000000", "generated", "theirs", "imported", "female", None, 4, pytest.approx(0.85)),
        ("00000001", "generated", "theirs", "imported", "male", None, 2, pytest.approx(0.1)),
    ]
    answer = sql.ask(sql.connect(workspace), "distribution", run="theirs")
    assert answer.rows() == [("generated", "female", 1, 0.5), ("generated", "male", 1, 0.5)]


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
        ("a,b\n1,2\n", "neither the original"),
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
    old = LabelsDocument(source="generated", run="mine", labeller="other", size=64, images=2, fingerprint="")
    write_document(run.label_files.document, old)
    with pytest.raises(FairfaceError, match="has labels of other"):
        import_labels(workspace, csv, run="mine")
    assert import_labels(workspace, csv, run="mine", force=True).images == 2
