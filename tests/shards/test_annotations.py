"""Tables of every AI-Face layout become one tidy frame."""

from pathlib import Path

import polars as pl
import pytest

from shards import annotations
from shards.annotations import AGES, ReadOptions, derived_class, find_tables, read_tables
from shards.attributes import built_in_attributes, read_attributes, read_own_attributes
from shards.errors import FairfaceError

RELEASED = "Image Path,Predicted Gender,Predicted Age,Skin Tone,Target,Skin Tone Group,Intersection\n"
README = "Image Path,Gender,Age,Skin Tone,Intersection,Target\n"
FIRST = (
    "Image Path,Uncertainty Score Gender,Uncertainty Score Age,Uncertainty Score Race,Ground Truth Gender,"
    "Ground Truth Age,Ground Truth Race,Intersection,Target\n"
)


def tidy(tmp_path: Path, text: str, name: str = "train.csv", **options) -> annotations.Tables:
    (tmp_path / name).write_text(text)
    return read_tables([tmp_path / name], ReadOptions(**options))


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


def test_no_attribute_decides_the_codes_of_another(tmp_path):
    """A race next to AI-Face's own columns leaves their codes of ages as they are."""
    read = tidy(tmp_path, README.replace("Target", "Target,Race") + "a/1.jpg,0,5,2,0,0,2\n")
    assert read.frame.select("age", "race").row(0) == ("senior", "Black")


def test_columns_of_several_layouts_are_one_clear_line(tmp_path):
    with pytest.raises(
        FairfaceError, match=r"fits the layouts AI-Face \(README\) and AI-Face \(first release\).*--columns"
    ):
        tidy(tmp_path, "Image Path,Gender,Ground Truth Race\na/1.jpg,0,1\n")
    with pytest.raises(FairfaceError, match="several columns 'gender'"):
        tidy(tmp_path, "Image Path,Gender,gender\na/1.jpg,0,1\n")
    with pytest.raises(FairfaceError, match="several columns 'age'"):
        tidy(tmp_path, "Image Path,Age,Age\na/1.jpg,0,1\n")


def test_fairface_has_words_and_bins_of_ages(tmp_path):
    text = (
        "file,age,gender,race,service_test\n"
        "train/1.jpg,3-9,Male,East Asian,True\n"
        "train/2.jpg,more than 70,FEMALE,Latino_Hispanic,False\n"
        "train/3.jpg,10-19,Female,Middle Eastern,False\n"
        "train/4.jpg,30 - 39,man,southeast-asian,\n"
    )
    read = tidy(tmp_path, text, "fairface_label_train.csv")
    assert read.frame.select("path", "age", "gender", "race", "split").rows() == [
        ("train/1.jpg", "child", "male", "Asian", "train"),
        ("train/2.jpg", "senior", "female", "Latino", "train"),
        ("train/3.jpg", None, "female", "Middle Eastern", "train"),
        ("train/4.jpg", "young", "male", "Asian", "train"),
    ]
    assert read.uncoded == 1  # ages from 10 to 19 are of no single class


CELEBA = "5_o_Clock_Shadow Male Young \n000001.jpg -1  1  1 \n000002.jpg  1 -1 -1\n000003.jpg -1 0 1\n000004.jpg\n"


def test_celeba_is_read_as_text_and_as_csv(tmp_path):
    genders = [("000001.jpg", "male", None), ("000002.jpg", "female", None), ("000003.jpg", None, None)]
    text = tidy(tmp_path, "4\n" + CELEBA, "list_attr_celeba.txt")
    assert text.frame.select("path", "gender", "age").rows() == [*genders, ("000004.jpg", None, None)]
    assert text.uncoded == 1
    windows = tidy(tmp_path, "4\r\n" + CELEBA.replace("\n", "\r\n"), "list_attr_celeba.txt")
    assert windows.frame.equals(text.frame)
    lines = [",".join(line.split()) for line in CELEBA.splitlines()]
    table = tidy(tmp_path, "\n".join(["image_id," + lines[0], *lines[1:-1]]))
    assert table.frame.select("path", "gender", "age").rows() == genders


def test_celebas_text_is_found_next_to_its_images(tmp_path):
    (tmp_path / "Anno").mkdir()
    (tmp_path / "Anno" / "list_attr_celeba.txt").write_text("4\n" + CELEBA)
    (tmp_path / "list_eval_partition.csv").write_text("image_id,partition\n000001.jpg,0\n")
    tables, others = find_tables(tmp_path)
    assert [path.name for path in tables] == ["list_attr_celeba.txt"]
    assert [Path(path).name for path in others] == ["list_eval_partition.csv"]


OWN = (("gender", "sex"), ("age", "years"), ("race", "origin"))


def test_a_table_in_own_columns_has_words_and_years(tmp_path):
    rows = [
        ("a.jpg", "m", "12", "white"),
        ("b.jpg", "F", "13", "Middle-Eastern"),
        ("c.PNG", " Woman ", "19.9", "LATINO"),
        ("d.jpg", "man", "20.0", "latino_hispanic"),
        ("e.jpg", "female", "-3", ""),
        ("f.jpg", "Male", "n/a", "black"),
        ("g.jpg", "1", "150", "southeast asian"),
        ("h.jpg", "", "Senior", "Martian"),
        ("i.jpg", "woman", "nan", "others"),
        ("j.jpg", "male", "59.99", "East_Asian"),
    ]
    text = "\n".join(",".join(row) for row in [("filename", "Sex", "YEARS ", "origin"), *rows])
    read = tidy(tmp_path, text, columns=OWN)
    assert read.frame.select("path", "gender", "age", "race").rows() == [
        ("a.jpg", "male", "child", "White"),
        ("b.jpg", "female", None, "Middle Eastern"),
        ("c.PNG", "female", None, "Latino"),
        ("d.jpg", "male", "young", "Latino"),
        ("e.jpg", "female", None, None),
        ("f.jpg", "male", None, "Black"),
        ("g.jpg", None, None, "Asian"),
        ("h.jpg", None, "senior", None),
        ("i.jpg", "female", None, "others"),
        ("j.jpg", "male", "middle", "Asian"),
    ]
    assert read.uncoded == 7


def test_own_columns_can_state_tones_targets_splits_and_paths(tmp_path):
    columns = (("skin_tone", "monk"), ("target", "kind"), ("split", "part"), ("path", "right"))
    text = "left,right,monk,kind,part\n1.jpg,x/2.jpg,7.0,FAKE,test\n1.jpg,x/3.jpg,0,0,\n"
    read = tidy(tmp_path, text, columns=columns)
    assert read.frame.select("path", "skin_tone", "skin_group", "target", "split").rows() == [
        ("x/2.jpg", 7, "dark", "fake", "test"),
        ("x/3.jpg", None, None, None, None),
    ]
    assert read.uncoded == 1


HAIR = """[hair]
title = "Hair"
subject = "balance of hair"
plural = "hair colours"
[hair.classes]
fair = { names = ["blond"] }
grey = {}
[lightness]
title = "Lightness"
subject = "balance of lightness"
plural = "lightnesses"
parent = "hair"
[lightness.classes]
light = { of = ["fair"] }
dim = { of = ["grey"] }
"""


def test_a_users_own_attributes_are_read_and_others_left_out(tmp_path):
    (tmp_path / "own.toml").write_text(HAIR)
    attributes = read_attributes(tmp_path / "own.toml")
    read = tidy(tmp_path, "file,top\na.jpg,Blond\nb.jpg,red\n", columns=(("hair", "top"),), attributes=attributes)
    assert read.frame.select("path", "hair", "lightness").rows() == [("a.jpg", "fair", "light"), ("b.jpg", None, None)]
    assert read.uncoded == 1
    assert not {"gender", "age", "race"} & set(read.frame.columns)
    text = README + "a/1.jpg,0,5,2,9,1\n"
    known = tidy(tmp_path, text, attributes=attributes)
    assert known.frame.rows() == [("a/1.jpg", None, None, "fake", "train")]
    assert (known.uncoded, known.disagreeing) == (0, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,sex\na.jpg,m\n", "has no column 'years': its columns are file, sex"),
        ("file,sex,years,origin\na,m,1,\n", "no column of image names.*path=COLUMN"),
        ("a,b,sex,years,origin\nx.jpg,y.jpg,m,1,\n", r"several columns of image names \(a, b\).*path=COLUMN"),
        ("file,sex,sex,years,origin\na.jpg,m,f,1,\n", "several columns 'sex'"),
        ("file,file,sex,years,origin\na.jpg,b.jpg,m,1,\n", "several columns 'file'"),
        ("file,sex,years,origin\na.jpg,m,1,,,\n", "can't be read as CSV"),
        ("", "can't be read as CSV"),
    ],
)
def test_a_table_without_the_stated_columns_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(FairfaceError, match=message) as refused:
        tidy(tmp_path, text, columns=OWN)
    assert "\n" not in str(refused.value)


def test_a_table_of_no_known_layout_says_how_to_name_its_columns(tmp_path):
    with pytest.raises(FairfaceError, match=r"the columns id, sex, .* FairFace, CelebA\): .*--columns"):
        tidy(tmp_path, "id,sex\n1,m\n")


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


@pytest.mark.parametrize("own", ["[intersection]", "[gender]"])
def test_intersections_are_compared_only_with_the_built_in_classes(tmp_path, own):
    """A user's own attribute may have the name of AI-Face's cross, or order the genders otherwise."""
    classes = {"[gender]": "male = {}, female = {}", "[intersection]": "a = {}, b = {}"}[own]
    (tmp_path / "own.toml").write_text(f'{own}\ntitle = "x"\nsubject = "x"\nplural = "x"\nclasses = {{ {classes} }}\n')
    options = ReadOptions(attributes=read_own_attributes(tmp_path / "own.toml").table)
    (tmp_path / "train.csv").write_text("Image Path,Gender,Age,Skin Tone,Intersection\na.jpg,1,1,2,3\nb.jpg,0,1,2,0\n")
    read = read_tables([tmp_path / "train.csv"], options)
    assert (read.rows, read.disagreeing) == (2, 0)
    assert read.frame["gender"].to_list() == ["male", "female"]
