"""The table of attributes: what it describes, and what it refuses in one line."""

import polars as pl
import pytest

from shards.annotations import derived_class
from shards.attributes import BUILT_IN, MAX_CLASSES, built_in_attributes, normalise_word, read_attributes
from shards.errors import FairfaceError

HAIR = '[hair]\ntitle = "Hair"\nsubject = "balance of hair"\nplural = "hair colours"\n'
CLASSES = "[hair.classes]\nfair = {}\ngrey = {}\nblack = {}\n"
BRIGHTNESS = """[brightness]
title = "Brightness"
subject = "balance of brightness"
plural = "brightnesses"
parent = "hair"
[brightness.classes]
bright = { of = ["fair", "grey"] }
dim = { of = ["black"] }
"""
CROSS = '[both]\ntitle = "Both"\nsubject = "balance of both"\nplural = "groups"\ncross = ["hair", "brightness"]\n'
NESTED = CROSS.replace("both]", "nested]").replace("hair", "both")  # a cross of a cross
MANY = HAIR + "[hair.classes]\n" + "".join(f"c{number} = {{}}\n" for number in range(500))


def read(tmp_path, text):
    path = tmp_path / "attributes.toml"
    path.write_text(text, encoding="utf-8")
    return read_attributes(path)


def test_a_table_describes_labelled_derived_and_crossed_attributes(tmp_path):
    attributes = read(tmp_path, HAIR + CLASSES + BRIGHTNESS + CROSS)
    assert {name: hair.names for name, hair in attributes.labelled.items()} == {"hair": ("fair", "grey", "black")}
    assert [item.name for item in attributes.derived] == ["brightness"]
    assert attributes["both"].names[:3] == ("fair-bright", "fair-dim", "grey-bright")
    assert len(attributes["both"].names) == 6


def test_classes_are_derived_and_crossed_and_null_stays_null(tmp_path):
    attributes = read(tmp_path, HAIR + CLASSES + BRIGHTNESS + CROSS)
    faces = pl.DataFrame({"hair": ["grey", "black", None, "blue"]})
    faces = faces.with_columns(derived_class(attributes["brightness"])).with_columns(derived_class(attributes["both"]))
    assert faces["brightness"].to_list() == ["bright", "dim", None, None]
    assert faces["both"].to_list() == ["grey-bright", "black-dim", None, None]


def test_the_built_in_table_has_the_words_and_colours_of_its_classes():
    attributes = built_in_attributes()
    assert attributes["gender"].classes[0].faces == "women"
    assert [len(colour.colour) for colour in attributes["skin_tone"].classes] == [7] * 10
    used = [tone for group in attributes["skin_group"].classes for tone in group.of]
    assert tuple(used) == attributes["skin_tone"].names
    assert all(attribute.prompts.keys() == set(attribute.names) for attribute in attributes.labelled.values())


def test_classes_have_words_and_years(tmp_path):
    text = CLASSES.replace("grey = {}", 'grey = { names = ["Silver-White", "gray"], years = [60, 99] }')
    hair = read(tmp_path, HAIR + text.replace("fair = {}", "fair = { years = [0, 59] }"))["hair"]
    words = {"fair": "fair", "grey": "grey", "silverwhite": "grey", "gray": "grey", "black": "black"}
    assert hair.words == words
    assert [item.years for item in hair.classes] == [(0, 59), (60, 99), None]
    assert normalise_word(" Latino_ hispanic-X ") == "latinohispanicx"
    assert normalise_word("20 - 29_A") == "20-29a"


COINCIDING = (
    HAIR
    + "[hair.classes]\ndark_a = {}\nfair = {}\n"
    + HAIR.replace("hair]", "hair_dark]")
    + "classes = {a = {}, b = {}}\n"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 attributes"),
        ("hair = 3", "hair is not a table"),
        (HAIR, "needs either 'classes'"),
        (HAIR + "[hair.classes]\nfair = {}\nfair = {}\n", "not a TOML file"),
        (HAIR + "[hair.classes]\nfair = {}\n", "of 2 to"),
        (MANY, f"of 2 to {MAX_CLASSES} classes"),
        (HAIR + "[hair.classes]\nfair = 1\ngrey = {}\n", "class 'fair' is not a table"),
        (HAIR + "[hair.classes]\n\"it's\" = {}\ngrey = {}\n", "at most 40 letters"),
        (HAIR + '[hair.classes]\nfair = { colour = "red" }\ngrey = {}\n', "'red' is not a colour"),
        (HAIR + '[hair.classes]\nfair = { color = "#ff0000" }\ngrey = {}\n', "'color' is not one of"),
        (HAIR + "[hair.classes]\nfair = { plural = 7 }\ngrey = {}\n", "'plural' must be a non-empty printable string"),
        (HAIR.replace("hair]", "key]") + "[key.classes]\na = {}\nb = {}\n", "'key' can't name an attribute"),
        (HAIR.replace("hair]", "run]") + "[run.classes]\na = {}\nb = {}\n", "'run' can't name an attribute"),
        (HAIR.replace("[hair]", '["ha\\"ir"]') + "classes = {}", "can't name an attribute"),
        (HAIR.replace('"Hair"', '""') + CLASSES, "'title' must be a non-empty printable string"),
        (HAIR.replace('"Hair"', '"\\u001b[1m"') + CLASSES, "'title' must be a non-empty printable string"),
        (HAIR + "headline = 1\n" + CLASSES, "'headline' must be true or false"),
        (HAIR + 'weight = "1"\n' + CLASSES, "'weight' is not one of"),
        (HAIR + CLASSES + BRIGHTNESS.replace('parent = "hair"', 'parent = "none"'), "the parent 'none' is not"),
        (HAIR + CLASSES + BRIGHTNESS.replace('"grey"', '"green"'), "'green' is not a class of hair"),
        (HAIR + CLASSES + BRIGHTNESS.replace('"black"', '"fair"'), "'fair' of hair belongs to two classes"),
        (HAIR + CLASSES + BRIGHTNESS.replace('of = ["black"]', ""), "'of' is not a list of classes"),
        (HAIR + CLASSES + BRIGHTNESS.replace("bright = {", "bright = { years = [0, 9],"), "'years' is not one of"),
        (HAIR + CLASSES.replace("grey = {}", 'grey = { names = "gray" }'), "'names' is not a list of words"),
        (HAIR + CLASSES.replace("grey = {}", 'grey = { names = ["Fair"] }'), "'fair' is a word for two classes"),
        (HAIR + CLASSES.replace("grey = {}", "grey = { years = [1] }"), "'years' is not a list of two integers"),
        (HAIR + CLASSES.replace("grey = {}", "grey = { years = [2, 1] }"), "in ascending order"),
        (COINCIDING, "hair and hair_dark would both have a column 'p_hair_dark_a'"),
        (HAIR + CLASSES.replace("grey = {}", "grey = { years = [0, 1000] }"), "from 0 to 150"),
        (HAIR + CLASSES.replace("= {}", "= { years = [1, 9] }"), "the 'years' of two classes overlap"),
        (HAIR + CLASSES + CROSS.replace(', "brightness"', ""), "at least two attributes"),
        (HAIR + CLASSES + CROSS.replace("brightness", "hair"), "crosses an attribute with itself"),
        (HAIR + CLASSES + CROSS, "can't cross 'brightness'"),
        (HAIR + CLASSES + BRIGHTNESS + CROSS + 'parent = "hair"\n', "both needs either 'classes'"),
        (HAIR + CLASSES + BRIGHTNESS + CROSS + NESTED, "can't cross 'both'"),
        ("a = " + "[" * 5000, "not a TOML file"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(FairfaceError, match=r"attributes\.toml") as refused:
        read(tmp_path, text)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_other_files_are_refused_in_one_line(tmp_path):
    with pytest.raises(FairfaceError, match="can't be read"):
        read_attributes(tmp_path / "missing.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(FairfaceError, match="not a TOML file"):
        read_attributes(tmp_path / "bytes.toml")


def test_no_other_file_has_the_colours_of_the_tones():
    tones = [tone.colour for tone in built_in_attributes()["skin_tone"].classes]
    root = BUILT_IN.parents[1]
    for folder in ("shards", "models", "pipeline", "sql", "reports"):
        for path in (root / folder).rglob("*.py"):
            assert not [colour for colour in tones if colour[1:] in path.read_text(encoding="utf-8")], path


@pytest.mark.parametrize("name", ["key", "filename", "matched", "uncoded", "disagrees", "p_hair", "every"])
def test_columns_next_to_those_of_attributes_name_no_attribute(tmp_path, name):
    """Otherwise a view would have a column twice, or a table would lose one while it is read."""
    with pytest.raises(FairfaceError, match="can't name an attribute"):
        read(tmp_path, HAIR.replace("[hair]", f"[{name}]") + CLASSES.replace("[hair.", f"[{name}."))


def test_numbers_are_stored_as_such_only_if_they_are_written_the_usual_way(tmp_path):
    classes = "[hair.classes]\n1 = {}\n10 = {}\n"
    assert read(tmp_path, HAIR + classes)["hair"].is_numbered
    assert not read(tmp_path, HAIR + classes.replace("10", "01"))["hair"].is_numbered
    assert not read(tmp_path, HAIR + classes.replace("10", "200"))["hair"].is_numbered


def test_more_labelled_attributes_than_sql_can_count_at_once_are_refused(tmp_path):
    text = "".join((HAIR + CLASSES).replace("[hair", f"[hair{number}") for number in range(61))
    with pytest.raises(FairfaceError, match="61 attributes are labelled directly; at most 60"):
        read(tmp_path, text)
