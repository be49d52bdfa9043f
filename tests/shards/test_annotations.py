"""Tables of every AI-Face layout become one tidy frame."""

from pathlib import Path

import polars as pl
import pytest

from shards import annotations
from shards.annotations import AGES, derived_class, find_tables, read_tables
from shards.attributes import built_in_attributes
from shards.errors import FairfaceError

RELEASED = "Image Path,Predicted Gender,Predicted Age,Skin Tone,Target,Skin Tone Group,Intersection\n"
README = "Image Path,Gender,Age,Skin Tone,Intersection,Target\n"
FIRST = (
    "Image Path,Uncertainty Score Gender,Uncertainty Score Age,Uncertainty Score Race,Ground Truth Gender,"
    "Ground Truth Age,Ground Truth Race,Intersection,Target\n"
)


def tidy(tmp_path: Path, text: str, name: str = "train.csv", **options) -> annotations.Tables:
    (tmp_path / name).write_text(text)
    return read_tables([tmp_path / name], **options)


def test_released_layout(tmp_path):
    read = tidy(tmp_path, RELEASED + "AI_Face_imagesV2/DMs/DCFACe/7856/6.jpg,1,3,6,1,1,4\n")
    assert read.frame.row(0, named=True) == {
        "path": "AI_Face_imagesV2/DMs/DCFACe/7856/6.jpg",
        "gender": "male",
        "age": "middle",
        "skin_tone": 6,
        "skin_group": "medium",
        "race": None,
        "target": "fake",
        "split": "train",
    }
    assert read.disagreeing == 0


def test_readme_layout_has_its_own_age_codes(tmp_path):
    rows = "".join(f"a/{age}.jpg,0,{age},2,0,0\n" for age in (0, 1, 3, 4, 5))
    read = tidy(tmp_path, README + rows, "test.csv")
    assert read.frame["age"].to_list() == list(AGES)
    assert read.frame["split"].to_list() == ["test"] * 5


def test_age_codes_follow_from_the_option_else_the_values_else_the_column(tmp_path):
    assert tidy(tmp_path, README + "a/1.jpg,0,2,2,0,0\n").frame["age"].item() == "adult"  # 2: only the released codes
    assert tidy(tmp_path, README + "a/1.jpg,0,3,2,0,0\n").frame["age"].item() == "adult"
    assert tidy(tmp_path, RELEASED + "a/1.jpg,0,3,2,0,0,0\n").frame["age"].item() == "middle"
    assert tidy(tmp_path, README + "a/1.jpg,0,3,2,0,0\n", age_codes="released").frame["age"].item() == "middle"
    with pytest.raises(FairfaceError, match="--age-codes"):
        tidy(tmp_path, README + "a/1.jpg,0,2,2,0,0\na/2.jpg,0,5,2,0,0\n")


def test_first_release_has_race_and_other_ages(tmp_path):
    read = tidy(tmp_path, FIRST + "a/1.jpg,.1,.2,.3,1,2,0,3,1\na/2.jpg,.1,.2,.3,0,3,3,1,0\n")
    assert read.frame.select("gender", "age", "race", "skin_tone").rows() == [
        ("male", "senior", "Asian", None),
        ("female", None, "others", None),
    ]
    assert read.disagreeing == 0  # its Intersection is by race: there is nothing to compare


def test_wrong_and_missing_codes_become_null_and_disagreements_are_counted(tmp_path):
    read = tidy(tmp_path, README + "a/1.jpg,7,1.5,11,0,3\na/2.jpg,,,,,\na/3.jpg,1.0, 1 ,10,5,1\na/4.jpg,1,1,10,0,1\n")
    assert read.frame.select("gender", "age", "skin_tone", "target").rows() == [
        (None, None, None, None),
        (None, None, None, None),
        ("male", "young", 10, "fake"),
        ("male", "young", 10, "fake"),
    ]
    assert read.disagreeing == 1


def test_repeated_paths_keep_their_first_row(tmp_path):
    read = tidy(tmp_path, README + "a/1.jpg,1,1,1,3,0\na/1.jpg,0,1,1,0,0\n")
    assert (read.rows, read.repeated, read.frame["gender"].to_list()) == (2, 1, ["male"])


@pytest.mark.parametrize(
    "text",
    [
        README + "a/1.jpg,0,1,2,0,0,9,9\n",
        'Image Path,Age\n"a,1\n',
        "name,age\n1,2\n",
        "Image Path,other\na,b\n",
        "",
        "\n",
    ],
)
def test_other_tables_are_an_error_that_names_them(tmp_path, text):
    with pytest.raises(FairfaceError, match=r"train\.csv"):
        tidy(tmp_path, text)


def test_skin_groups_as_ai_face_has_them():
    tones = pl.DataFrame({"skin_tone": [*range(1, 11), None]})
    groups = tones.select(derived_class(built_in_attributes()["skin_group"]))["skin_group"].to_list()
    assert groups == ["light"] * 3 + ["medium"] * 3 + ["dark"] * 4 + [None]


def test_tables_are_looked_for_in_the_root_and_one_level_down(tmp_path):
    for name in ("train.csv", "meta/test.csv", "a/b/deep.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert [path.name for path in find_tables(tmp_path)[0]] == ["test.csv", "train.csv"]


def test_other_csv_files_are_ignored_and_listed(tmp_path):
    (tmp_path / "train.csv").write_text(README)
    (tmp_path / "list.csv").write_text("id,name\n1,2\n")
    (tmp_path / "._train.csv").write_bytes(b"\0\5\x16\7")  # as macOS leaves them in archives
    tables, others = find_tables(tmp_path)
    assert ([path.name for path in tables], [Path(path).name for path in others]) == (["train.csv"], ["list.csv"])


def test_splits_are_whole_words(tmp_path):
    names = ("train_gan_subset.csv", "AI-Face.val.csv", "latest.csv", "value.csv", "validation.csv")
    splits = [tidy(tmp_path, README + "a/1.jpg,0,0,2,0,0\n", name).frame["split"].item() for name in names]
    assert splits == ["train", "val", None, None, "val"]


def test_labels_that_are_not_codes_are_counted(tmp_path):
    read = tidy(tmp_path, README + "a/1.jpg,Male,young,2,0,0\na/2.jpg,,1,3,,1\na/3.jpg,0,1,0,0,0\n")
    assert read.uncoded == 2
    assert tidy(tmp_path, FIRST + "a/1.jpg,.1,.2,.3,1,3,3,3,1\n").uncoded == 0  # "others" is a code


def test_windows_paths_and_byte_order_marks_are_read(tmp_path):
    read = tidy(tmp_path, "\ufeff" + README.replace("\n", "\r\n") + "C:\\AI\\GANs\\X\\1.jpg,0,1,2,0,1\r\n")
    assert read.frame.row(0)[:2] == ("C:/AI/GANs/X/1.jpg", "female")
