"""Rows match images by path suffix, and everything unmatched is listed."""

from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import annotations
from shards.attributes import built_in_attributes
from shards.discover import describe
from shards.errors import FairfaceError
from shards.match import Matched, match_rows, normalise_name, with_aliases


def match_paths(root: Path, files: list[str], rows: list[str], **aliases: str) -> Matched:
    """The match of these paths; each row's label `race` is its own path."""
    table = pl.DataFrame({"path": rows}, schema={"path": pl.String}).with_columns(
        **{
            name: pl.lit(None, pl.Int8 if name == "skin_tone" else pl.String)
            for name in annotations.label_types(built_in_attributes())
        }
    )
    table = table.with_columns(race=pl.col("path"))
    described = describe(pl.Series("path", files, pl.String), root)
    return match_rows(described, table, root=root, aliases=with_aliases(aliases.items()))


def matches(root: Path, files: list[str], rows: list[str], **aliases: str) -> dict[str, str | None]:
    """file -> its row."""
    return dict(match_paths(root, files, rows, **aliases).files.select("path", "race").iter_rows())


def unmatched(matched: Matched) -> set[tuple[str, str, str]]:
    return set(matched.unmatched.select("what", "reason", "path").iter_rows())


def test_rows_match_by_the_longest_suffix_never_by_the_bare_name(tmp_path):
    files = ["GANs/STYLEGAN2/a.jpg", "GANs/StyleGAN-3/a.jpg", "Real/FFHQ/a.jpg", "DMs/x/7/6.jpg", "DMs/y/7/6.jpg"]
    rows = [
        "AI_Face_imagesV2/GANs/StyleGAN2_FFHQ/a.jpg",  # an alias
        "/elsewhere/stylegan_3/a.jpg",  # case, - and _
        "somewhere/a.jpg",  # only the bare name: three files have it
        "AI_Face_imagesV2/DMs/y/7/6.jpg",
    ]
    assert matches(tmp_path, files, rows) == dict(zip(files, [rows[0], rows[1], None, None, rows[3]], strict=True))
    assert unmatched(match_paths(tmp_path, files, rows)) == {
        ("row", "missing", rows[2]),
        ("image", "missing", files[2]),
        ("image", "missing", files[3]),
    }


def test_a_row_of_another_method_never_labels_an_image(tmp_path):
    """What is left of two methods must not be matched by the part of their paths that all methods share."""
    files, rows = ["DMs/DCFACe/7856/6.jpg", "plain/7856/7.jpg"], ["AI/GANs/AttGAN/7856/6.jpg", "AI/DMs/x/7856/7.jpg"]
    matched = match_paths(tmp_path, files, rows)
    assert not matched.files["matched"].any()
    assert unmatched(matched) == {("image", "missing", f) for f in files} | {("row", "missing", r) for r in rows}


def test_a_users_alias_matches_another_name(tmp_path):
    files, rows = ["GANs/att gan (1)/1.jpg", "GANs/VQ_GAN/2.jpg"], ["x/AttGAN/1.jpg", "x/TamingTransformer_VQGAN/2.jpg"]
    assert set(matches(tmp_path, files, rows).values()) == {None, rows[1]}
    pair = {"AttGAN": "ATT-gan (1)"}
    assert list(matches(tmp_path, files, rows, **{"ATT-gan (1)": "att gan (1)"} | pair).values()) == rows


def test_chains_of_aliases_are_resolved_and_cycles_refused():
    assert with_aliases([("A", "B"), ("b", "StyleGAN2_FFHQ")])["a"] == "stylegan2"
    with pytest.raises(FairfaceError, match="lead back"):
        with_aliases([("a", "b"), ("b", "a")])


def test_ambiguous_suffixes_match_nothing_and_are_listed(tmp_path):
    files = ["one/same/a.jpg", "two/same/a.jpg", "three/b/c.jpg"]
    rows = ["x/same/a.jpg", "p/b/c.jpg", "q/b/c.jpg"]
    matched = match_paths(tmp_path, files, rows)
    assert not matched.files["matched"].any()
    assert unmatched(matched) == {("image", "ambiguous", f) for f in files} | {("row", "ambiguous", r) for r in rows}


def test_unmatched_paths_have_family_and_subset(tmp_path):
    matched = match_paths(tmp_path, ["GANs/AttGAN/1.jpg"], ["AI/DMs/DCFACe/7/1.jpg", "1.jpg"])
    assert matched.unmatched.select("what", "family", "subset").sort("what", "family").rows() == [
        ("image", "GANs", "AttGAN"),
        ("row", None, None),
        ("row", "DMs", "DCFACe"),
    ]


def test_a_suffix_of_thousands_does_not_make_millions(tmp_path):
    files, rows = [f"a{i}/same/1.jpg" for i in range(4000)], [f"b{i}/same/1.jpg" for i in range(4000)]
    matched = match_paths(tmp_path, files, rows)
    assert len(matched.unmatched) == 8000
    assert set(matched.unmatched["reason"]) == {"ambiguous"}


def test_exact_paths_match_even_without_a_folder(tmp_path):
    files, rows = ["a.jpg", "b.jpg"], ["a.jpg", f"{tmp_path.resolve()}/b.jpg"]
    assert list(matches(tmp_path, files, rows).values()) == rows


def test_rows_of_one_data_set_match_below_a_familys_folder_where_their_paths_are_unique(tmp_path):
    """FairFace's rows begin at its splits, and CelebA's are bare names."""
    files = ["Real/FairFace/train/1.jpg", "Real/FairFace/val/1.jpg", "Real/CelebA/img_align/000001.jpg"]
    rows = ["train/1.jpg", "val/1.jpg", "000001.jpg"]
    assert list(matches(tmp_path, files, rows).values()) == rows
    more = [*files, "GANs/X/train/1.jpg", "DMs/Y/000001.jpg"]
    assert list(matches(tmp_path, more, rows).values()) == [None, rows[1], None, None, None]
    others = [*rows, "/elsewhere/GANs/X/train/1.jpg", "AI/DMs/Y/000001.jpg"]
    assert list(matches(tmp_path, files, others).values()) == [None, rows[1], None]
    assert matches(tmp_path, ["Real/a/1.jpg"], ["b/1.jpg"]) == {"Real/a/1.jpg": None}  # another folder


def test_rows_with_the_same_labels_for_an_image_count_as_one(tmp_path):
    files, rows = ["GANs/X/1.jpg", "GANs/X/2.jpg"], ["A/GANs/X/1.jpg", "B/GANs/X/1.jpg", "A/GANs/X/2.jpg"]
    table = pl.DataFrame({"path": [*rows, "B/GANs/X/2.jpg"], "gender": ["male", "male", "male", "female"]})
    table = table.with_columns(
        split=pl.Series(["train", "test", "train", "test"]),
        **{
            n: pl.lit(None, pl.String)
            for n in annotations.label_types(built_in_attributes())
            if n not in ("gender", "split")
        },
    )
    matched = match_rows(describe(pl.Series("path", files), tmp_path), table, root=tmp_path)
    assert matched.files.select("gender", "split", "matched").rows() == [("male", "train", True), (None, None, False)]
    assert unmatched(matched) == {
        ("row", "repeated", rows[1]),
        ("row", "ambiguous", rows[2]),
        ("row", "ambiguous", "B/GANs/X/2.jpg"),
        ("image", "ambiguous", files[1]),
    }


def test_local_paths_with_a_familys_name_above_the_data_match(tmp_path):
    files = ["GANs/X/1.jpg", "GANs/Y/Y/2.jpg", "deepfakes/FF++/real/7/1.jpg"]
    rows = ["/data/gans/AI-Face/GANs/X/1.jpg", "AI/GANs/Y/2.jpg", "/data/Real/AI-Face/deepfakes/FF++/real/7/1.jpg"]
    assert list(matches(tmp_path, files, rows).values()) == rows


names = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8
)
trees = st.lists(st.tuples(names, names, names), min_size=1, max_size=8, unique=True)


def paths_of(tree: list[tuple[str, str, str]]) -> list[str]:
    return sorted({f"{a}/{b}/{c}.jpg" for a, b, c in tree if not {a, b} & {".", ".."}})


@given(trees)
def test_any_names_match_themselves(tree):
    files = paths_of(tree)
    pairs = matches(Path("/data"), files, [f"prefix/{file}" for file in files])
    same_name = Counter((normalise_name(file.rpartition("/")[0]), file.rpartition("/")[2]) for file in files)
    for file, row in pairs.items():  # folders that normalise to the same name are ambiguous, never wrong
        unique = same_name[normalise_name(file.rpartition("/")[0]), file.rpartition("/")[2]] == 1
        assert row == (f"prefix/{file}" if unique else None)


@given(trees, trees)
def test_every_image_and_every_row_is_matched_or_listed_once(tree, other):
    files, rows = paths_of(tree), sorted({f"prefix/{path}" for path in paths_of(tree)[::2] + paths_of(other)})
    matched = match_paths(Path("/data"), files, rows)
    listed = matched.unmatched.select("what", "path").rows()
    matched_rows = matched.files["race"].drop_nulls().to_list()
    assert matched.files["path"].to_list() == files
    assert len(set(matched_rows)) == len(matched_rows)
    assert sorted(path for what, path in listed if what == "image") == sorted(
        matched.files.filter(~pl.col("matched"))["path"]
    )
    assert sorted([path for what, path in listed if what == "row"] + matched_rows) == rows
