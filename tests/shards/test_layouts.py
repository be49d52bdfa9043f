"""Every layout of annotations: AI-Face's up to the bytes in every reader of tars, and those of other data sets."""

import csv
import tarfile
from pathlib import Path

import polars as pl
import pytest
import webdataset

from shards import annotations, tar
from shards.attributes import built_in_attributes
from shards.containers import is_plainly_safe
from shards.errors import FairfaceError
from shards.image_check import inspect_and_convert
from shards.layouts import BUILT_IN, built_in_layouts, own_layout, parse_columns, read_layouts
from shards.plan import PackConfig, make_plan, survey
from shards.synthetic.dataset import sample_faces
from tests.shards.packing import pack_into
from tests.shards.sample_images import BAD, GOOD

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
has_reference = pytest.mark.skipif(
    not (REFERENCE / "annotated-faces-tables").is_dir(), reason="the annotated photographs are not available"
)
FACES = sample_faces(40, seed=5)
FOLDERS = ("GANs/STYLE-GAN2", "DMs/DCFACe/7856", "Real/FF HQ's", 'deepfakes/Ü "q"\n', "GANs/AttGAN")
AGES = {"readme": (0, 1, 3, 4, 5), "released": range(5), "trimmed": range(5), "first": (3, 0, 0, 1, 2)}
RACES = ("Asian", "White", "Black", "others")  # by the codes of the first release
HEADERS = {
    "readme": ("Image Path", "Gender", "Age", "Skin Tone", "Intersection", "Target"),
    "released": (
        "Image Path",
        "Predicted Gender",
        "Predicted Age",
        "Skin Tone",
        "Target",
        "Skin Tone Group",
        "Intersection",
    ),
    "first": (
        "Image Path",
        *(f"Uncertainty Score {name}" for name in ("Gender", "Age", "Race")),
        *(f"Ground Truth {name}" for name in ("Gender", "Age", "Race")),
        "Intersection",
        "Target",
    ),
}
HEADERS["trimmed"] = HEADERS["released"]
PREFIXES = {"readme": "", "released": "AI_Face_imagesV2/", "first": "/home/somebody/AI-Face/", "trimmed": None}


def image_path(number: int) -> str:
    """Where face `number` lies: the same few names in every folder."""
    return f"{FOLDERS[number % 5]}/{number // 5}.jpg"


def cells(layout: str, number: int, root: Path) -> dict[str, object]:
    """A face's row in that layout."""
    face = FACES[number]
    gender, group = int(face.gender == "male"), (face.skin_tone > 3) + (face.skin_tone > 6)
    age = AGES[layout][annotations.AGES.index(face.age)]
    written = image_path(number).replace("STYLE-GAN2", "StyleGAN2_FFHQ")
    prefix = PREFIXES[layout] if PREFIXES[layout] is not None else f"{root}/"
    if layout == "trimmed":
        written = image_path(number)
    return {
        "Image Path": prefix + written,
        **{f"{kind}Gender": gender for kind in ("", "Predicted ", "Ground Truth ")},
        **{f"{kind}Age": age for kind in ("", "Predicted ", "Ground Truth ")},
        "Ground Truth Race": number % 4,
        "Skin Tone": face.skin_tone,
        "Skin Tone Group": group,
        "Intersection": 3 * gender + group,
        "Target": int(not image_path(number).startswith("Real")),
    }


@pytest.fixture(params=["readme", "released", "first", "trimmed"])
def tree(request, tmp_path) -> tuple[str, Path]:
    """Forty faces in five folders, two of them missing; a folder of every kind of image; a table."""
    layout, root = request.param, tmp_path / "AI Face"
    kinds = [*GOOD.values()]
    for number in range(len(FACES)):
        if number not in (3, 7):
            (root / image_path(number)).parent.mkdir(parents=True, exist_ok=True)
            (root / image_path(number)).write_bytes(kinds[number % len(kinds)][1])
    (root / "DMs" / "broken").mkdir()
    for reason, data in BAD.items():
        (root / "DMs" / "broken" / f"{reason}.png").write_bytes(data)
    with open(root / "train_gan_subset.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, HEADERS[layout], restval=0.5, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(cells(layout, number, root) for number in range(len(FACES)))
    return layout, root


def test_every_layout_labels_the_right_images(tree, tmp_path):
    layout, root = tree
    document = pack_into(root, tmp_path / "shards", shard_images=16)
    assert (document.images, document.matched, document.rows, document.rows_disagreeing) == (38, 38, 40, 0)
    assert document.unmatched == {"missing_rows": 2, "missing_images": len(BAD)}
    assert document.rejected == dict.fromkeys(BAD, 1)
    images = pl.read_parquet(tmp_path / "shards" / "images.parquet").filter(status="packed")
    rows = {row["path"]: row for row in images.iter_rows(named=True)}
    for number, face in enumerate(FACES):
        if number in (3, 7):
            continue
        row = rows[image_path(number)]
        first = layout == "first"
        age = {"child": None, "young": "young", "adult": "young"}.get(face.age, face.age) if first else face.age
        tone = None if first else face.skin_tone
        assert (row["gender"], row["age"], row["skin_tone"]) == (face.gender, age, tone)
        assert row["race"] == (RACES[number % 4] if first else None)
        assert row["target"] == ("real" if image_path(number).startswith("Real") else "fake")
        assert (row["family"], row["subset"], row["split"]) == (*image_path(number).split("/")[:2], "train")


def read_by_dali(paths: list[Path]) -> list[bytes]:
    """Every member by DALI's reader, in order."""
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def pipeline():
        kinds = [";".join(("jpg", "png", "webp", "bmp", "tif"))]
        names = [str(path) for path in paths]
        return fn.readers.webdataset(paths=names, index_paths=[n[:-3] + "idx" for n in names], ext=kinds, name="reader")

    running = pipeline()
    running.build()
    return [bytes(running.run()[0].at(0)) for _ in range(running.reader_meta("reader")["epoch_size"])]


def test_tar_webdataset_dali_and_the_index_read_the_same(tree, tmp_path):
    _, root = tree
    folder = tmp_path / "shards"
    pack_into(root, folder, shard_images=16)
    paths, ours = sorted(folder.glob("*.tar")), {}
    for path in paths:
        ours |= tar.read_members(path, tar.read_index(path))
        with tarfile.open(path) as file:
            assert {
                member.name.split(".")[0]: file.extractfile(member).read() for member in file
            }.items() <= ours.items()
    samples = webdataset.WebDataset([str(path) for path in paths], shardshuffle=False, empty_check=False)
    loaded = {s["__key__"]: next(v for k, v in s.items() if not k.startswith("__")) for s in samples}
    table = pl.read_parquet(folder / "images.parquet").filter(status="packed")
    assert loaded == ours
    assert list(loaded) == table["key"].to_list()
    assert read_by_dali(paths) == list(ours.values())
    for key, path in table.select("key", "path").iter_rows():
        data = (root / path).read_bytes()
        assert ours[key] == (data if is_plainly_safe(data) else inspect_and_convert(data)[1])


# Years, gender and race by UTKFace's codes -> age, gender and race in the layouts that state these.
PEOPLE = {
    (1, 1, 0): ("child", "female", "White"),
    (9, 0, 1): ("child", "male", "Black"),
    (11, 0, 2): ("child", "male", "Asian"),
    (16, 1, 3): (None, "female", "Indian"),
    (20, 1, 4): ("young", "female", "others"),
    (39, 0, 0): ("young", "male", "White"),
    (40, 0, 1): ("middle", "male", "Black"),
    (59, 1, 2): ("middle", "female", "Asian"),
    (60, 1, 3): ("senior", "female", "Indian"),
    (116, 0, 4): ("senior", "male", "others"),
}
OWN_COLUMNS = (("gender", "sex"), ("age", "years"), ("race", "ancestry"))
BINS = {2: "0-2", 9: "3-9", 19: "10-19", 29: "20-29", 39: "30-39", 49: "40-49", 59: "50-59", 69: "60-69"}
CELEBA = ("5_o_Clock_Shadow", "Male", "Smiling", "Young")


def write_people(root: Path, tables: Path) -> dict[str, tuple[str | None, str, str]]:
    """Write images named as UTKFace's, and their tables in other layouts; return each name's labels in PEOPLE."""
    (root / "Real" / "UTKFace").mkdir(parents=True)
    names, lines = {}, {"first": [",".join(HEADERS["first"])], "fairface": ["file,age,gender,race,service_test"]}
    lines |= {"own": ["filename,sex,years,ancestry"], "celeba": ["image_id," + ",".join(CELEBA)]}
    text = [str(len(PEOPLE)), " ".join(CELEBA) + " "]
    for number, ((years, sex, race), classes) in enumerate(PEOPLE.items()):
        name = f"{years}_{sex}_{race}_2017{number:04d}.jpg.chip.jpg"
        (root / "Real" / "UTKFace" / name).write_bytes(GOOD["jpeg"][1])
        names[name] = classes
        age = 3 if years < 20 else min(years // 20 - 1, 2)
        lines["first"].append(f"Real/UTKFace/{name},.1,.1,.1,{1 - sex},{age},{(1, 2, 0, 3, 3)[race]},0,0")
        years_bin = next((text for last, text in BINS.items() if years <= last), "more than 70")
        race_name = ("White", "Black", "Southeast Asian", "Indian", "Others")[race]
        lines["fairface"].append(f"UTKFace/{name},{years_bin},{('Male', 'Female')[sex]},{race_name},False")
        lines["own"].append(f"{name},{'mf'[sex]},{years},{race_name.lower().replace(' ', '-')}")
        cells = ("-1", ("1", "-1")[sex], "-1", " 1")
        lines["celeba"].append(f"{name},{','.join(cells)}")
        text.append(f"{name} {' '.join(cells)} ")
    tables.mkdir()
    for layout, rows in lines.items():
        (tables / f"{layout}.csv").write_text("\n".join([*rows, ""]))
    (tables / "list_attr_celeba.txt").write_text("\n".join([*text, ""]))
    return names


def planned_labels(root: Path, table: Path | None = None, columns: tuple[tuple[str, str], ...] = ()) -> pl.DataFrame:
    """name, age, gender and race of every image, as they would be packed; `table` of None looks for labels."""
    plan = make_plan(survey(root, PackConfig(columns=columns), tables=[table] if table else None))
    assert plan.inputs.matched == len(plan.images)
    labels = plan.images.select(pl.col("path").str.extract("([^/]*)$").alias("name"), "age", "gender", "race")
    return labels.with_columns(pl.exclude("name").cast(pl.String)).sort("name")


def labels_by_name(labels: pl.DataFrame) -> dict[str, tuple[str | None, ...]]:
    return {name: classes for name, *classes in map(list, labels.iter_rows())}


def test_every_layout_of_the_same_people_gives_the_same_labels(tmp_path):
    root, tables = tmp_path / "data", tmp_path / "tables"
    expected = {name: list(classes) for name, classes in write_people(root, tables).items()}
    assert labels_by_name(planned_labels(root)) == expected  # by the images' names
    assert labels_by_name(planned_labels(root, tables / "own.csv", OWN_COLUMNS)) == expected
    by_bins = labels_by_name(planned_labels(root, tables / "fairface.csv"))
    assert by_bins == {
        name: [None if name.startswith("11_") else age, *rest] for name, (age, *rest) in expected.items()
    }
    first = labels_by_name(planned_labels(root, tables / "first.csv"))
    for name, (age, gender, race) in expected.items():
        assert first[name] == [None if age == "child" else age, gender, "others" if race == "Indian" else race]
    genders = {name: [None, gender, None] for name, (_, gender, _) in expected.items()}
    assert labels_by_name(planned_labels(root, tables / "celeba.csv")) == genders
    assert labels_by_name(planned_labels(root, tables / "list_attr_celeba.txt")) == genders


@has_reference
def test_every_layout_of_the_annotated_photographs_gives_the_same_labels():
    root, tables = REFERENCE / "annotated-faces", REFERENCE / "annotated-faces-tables"
    names = planned_labels(root / "Real")
    own = planned_labels(root, tables / "own-columns.csv", OWN_COLUMNS)
    by_bins = planned_labels(root, tables / "fairface-columns.csv")
    first = planned_labels(root)  # its table lies there
    assert own.equals(names)
    assert len(names) == 12_000
    for other in (by_bins, first):
        assert other["name"].equals(names["name"])
        assert other["gender"].equals(names["gender"])
        stated = other["age"].is_not_null()
        assert other["age"].filter(stated).equals(names["age"].filter(stated))
        assert not (names["age"].is_in(["young", "middle", "senior"]) & ~stated).any()
    assert by_bins["race"].equals(names["race"])
    assert first["race"].equals(names["race"].replace("Indian", "others"))


def test_labels_in_names_need_nine_of_ten_images_and_no_table(tmp_path):
    root, tables = tmp_path / "data", tmp_path / "tables"
    write_people(root, tables)
    folder = root / "Real" / "UTKFace"
    (folder / "39_1_20170116174525125.jpg.chip.jpg").write_bytes(GOOD["jpeg"][1])  # without a race, as some there are
    plan = make_plan(survey(root, PackConfig()))
    assert (plan.inputs.tables, plan.inputs.rows, plan.inputs.rows_uncoded) == (["file names (UTKFace)"], 10, 1)
    assert plan.inputs.unmatched == {"missing_images": 1}
    (folder / "portrait.jpg").write_bytes(GOOD["jpeg"][1])
    assert make_plan(survey(root, PackConfig())).inputs.tables == []
    (folder / "portrait.jpg").unlink()
    assert make_plan(survey(root, PackConfig(), tables=[])).inputs.tables == []
    (root / "list.csv").write_text("id,name\n1,2\n")
    survey_with_list = survey(root, PackConfig())
    assert survey_with_list.tree.unreadable == [str(root / "list.csv")]
    assert make_plan(survey_with_list).inputs.rows == 10
    (tables / "fairface.csv").rename(root / "fairface.csv")
    assert make_plan(survey(root, PackConfig())).inputs.tables == [str(root / "fairface.csv")]


def test_the_bins_of_fairface_agree_with_the_years_of_the_classes():
    codes = built_in_layouts().layouts["fairface"].labels["age"].codes
    years = {item.name: item.years for item in built_in_attributes()["age"].classes}
    for value, name in codes.items():
        first, last = (70, 120) if value == "morethan70" else map(int, value.split("-"))
        assert years[name][0] <= first <= last <= years[name][1]
    assert "10-19" not in codes
    assert years["adult"] is None


def test_a_table_is_told_apart_by_its_columns_alone():
    def titles(header: str) -> list[str]:
        return [layout.title for layout in built_in_layouts().recognise(header.split(","), built_in_attributes())]

    assert titles(",".join(HEADERS["released"]).lower()) == ["AI-Face (released files)"]
    assert titles(",".join(HEADERS["first"]).lower()) == ["AI-Face (first release)"]
    assert titles("image path,gender,age,race") == ["AI-Face (README)"]  # a race does not decide the codes of ages
    assert titles("file,age,gender,race") == ["FairFace"]
    assert titles("image_id,5_o_clock_shadow,male,young") == ["CelebA"]
    assert len(titles("image path,target")) == 1  # which all of AI-Face's layouts read in the same way
    assert len(titles("image path,gender,ground truth race")) == 2
    assert titles("image_id,partition") == titles("file,age") == titles("") == []


def test_the_reference_describes_every_layout_and_the_years_of_ages():
    text = (BUILT_IN.parents[1] / "docs" / "reference.md").read_text(encoding="utf-8")
    for layout in built_in_layouts().layouts.values():
        assert f"| {layout.title} |" in text
    for item in built_in_attributes()["age"].classes:
        assert item.years is None or f"| `{item.name}` | {item.years[0]}-{item.years[1]} |" in text


LAYOUT = '[layouts.a]\ntitle = "A"\npath = "file"\n[layouts.a.labels]\n'
NAMED = LAYOUT.replace("path", "file_name")
CODES = '[age_codes.readme]\n0 = "child"\n'


def gender(meaning: str) -> str:
    """The labels of a layout."""
    return f'gender = {{ column = "g", {meaning} }}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'age_codes' is not a table"),
        ("a = " + "[" * 5000, "not a TOML file"),
        (CODES, "'layouts' is not a table"),
        (CODES + "[layouts]\na = 1\n", "a is not a table"),
        (CODES + LAYOUT, "'labels' is not a table"),
        (CODES.replace("child", "baby") + LAYOUT, "'baby' is not one of child"),
        (CODES + LAYOUT + "gender = 1\n", "a.gender is not a table"),
        (CODES + LAYOUT + 'hair = { column = "h", words = true }\n', "'hair' is not an attribute"),
        (CODES + LAYOUT + 'gender = { column = "g" }\n', "needs exactly one of age_codes, codes, words, years"),
        (CODES + LAYOUT + gender('words = true, years = true'), "needs exactly one of"),
        (CODES + LAYOUT + 'gender = { column = "G", words = true }\n', "'G' must be in lower case"),
        (CODES + LAYOUT + gender('words = false'), "can only be true"),
        (CODES + LAYOUT + gender('years = true'), "no class of gender has 'years'"),
        (CODES + LAYOUT + gender('codes = { 0 = "boy" }'), "'boy' is not one of female, male"),
        (CODES + LAYOUT + gender('codes = { f = "female", F = "male" }'), "two codes are equal"),
        (CODES + LAYOUT + 'age = { column = "g", age_codes = ["none"] }\n', "'age_codes' is not a list of readme"),
        (CODES + LAYOUT.replace("path", "row") + gender('words = true'), "'row' is not one of"),
        (CODES + NAMED + gender('words = true'), "no group 'g'"),
        (CODES + NAMED.replace('"file"', '"("') + gender('words = true'), "not a regular expression"),
        (CODES + LAYOUT.replace("path", 'file_name = "x"\npath') + gender('words = true'), "either"),
    ],
)  # fmt: skip
def test_a_wrong_file_of_layouts_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "layouts.toml"
    path.write_text(text)
    with pytest.raises(FairfaceError, match=r"layouts\.toml") as refused:
        read_layouts(path)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_codes_may_be_words_some_of_which_are_no_class(tmp_path):
    codes = gender('codes = { W = "female", M = "male", "not sure" = "" }')
    (tmp_path / "layouts.toml").write_text(CODES + LAYOUT + codes)
    (tmp_path / "a.csv").write_text("file,g\na.jpg,w\nb.jpg, M \nc.jpg,Not_Sure\nd.jpg,1\n")
    options = annotations.ReadOptions(layouts=read_layouts(tmp_path / "layouts.toml"))
    read = annotations.read_tables([tmp_path / "a.csv"], options)
    assert read.frame["gender"].to_list() == ["female", "male", None, None]
    assert read.uncoded == 1


def test_the_layouts_are_those_of_the_file():
    assert read_layouts(BUILT_IN) == built_in_layouts()
    with pytest.raises(FairfaceError, match="can't be read"):
        read_layouts(BUILT_IN.with_name("missing.toml"))


def test_own_columns_are_pairs_of_an_attribute_and_a_column():
    assert parse_columns(" gender=sex, age = Years,path=file") == (
        ("gender", "sex"),
        ("age", "Years"),
        ("path", "file"),
    )
    for text, message in {
        "gender": "is not ATTRIBUTE=COLUMN",
        "gender=": "is not ATTRIBUTE=COLUMN",
        "": "is not ATTRIBUTE=COLUMN",
        "gender=a,gender=b": "'gender' is named twice",
        "gender=a,age=A": "'a' is named twice",
        "path=file": "names no labels",
    }.items():
        with pytest.raises(FairfaceError, match=message):
            parse_columns(text)
    for name in ("hair", "skin_group"):
        with pytest.raises(FairfaceError, match=f"'{name}' is not one of gender, age, skin_tone, race, path"):
            own_layout(parse_columns(f"{name}=x"), built_in_attributes(), path="file")
