"""Which images are packed: by subset, split, predicate and limit; and which rows and images miss each other."""

import re
import shutil

import polars as pl
import pytest

from shards.errors import FairfaceError
from tests.shards.packing import pack_into, tars_and_indices
from tests.shards.sample_images import encoded_image


def test_the_selection_of_images(synthetic_root, tmp_path):
    every = pack_into(synthetic_root, tmp_path / "all")
    images = pl.read_parquet(tmp_path / "all" / "images.parquet")
    dark = images.filter(pl.col("skin_tone") >= 7, pl.col("gender") == "female")
    document = pack_into(synthetic_root, tmp_path / "dark", where="skin_tone >= 7 and intersection = 'female-dark'")
    selected = pl.read_parquet(tmp_path / "dark" / "images.parquet")
    assert set(selected["path"]) == set(dark["path"])
    assert (document.images_found, document.images, every.images) == (240, len(dark), 240)
    assert pack_into(synthetic_root, tmp_path / "gans", subsets=("gans", "SYNTHETIC"), limit=7).images == 7
    assert pack_into(synthetic_root, tmp_path / "split", splits=("train",)).images == 240


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subsets": ("FFHQ",)}, "--subset FFHQ selects none of the 240 images; the names are: GANs, Synthetic"),
        ({"splits": ("test",)}, "--split test selects none of the 240 images; the names are: train"),
        ({"where": "gendr = 'male'"}, '"gendr" not found'),
        ({"where": "gender = 'none'"}, "selects none of the 240 images"),
        ({"where": "1 = 1"}, "names no column; the columns are path, family"),
        ({"where": "gender = "}, "is not one predicate"),
        ({"where": "len(path) > len(" + "[" * 400 + "]" * 400 + ")"}, "is nested too deeply"),
        ({"where": "gender = 'male') union select (1"}, "is not one predicate"),
        ({"where": "gender"}, "Could not convert"),
        ({"aliases": (("a", "b"), ("b", "a"))}, "lead back"),
    ],
)
def test_an_invalid_selection_is_an_error_before_anything_is_touched(synthetic_root, tmp_path, options, message):
    pack_into(synthetic_root, tmp_path / "shards")
    before = tars_and_indices(tmp_path / "shards")
    with pytest.raises(FairfaceError, match=re.escape(message)):
        pack_into(synthetic_root, tmp_path / "shards", force=True, **options)
    assert tars_and_indices(tmp_path / "shards") == before


def test_unmatched_rows_and_images_are_counted_and_listed(synthetic_root, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(synthetic_root / "GANs", root / "GANs")
    (root / "GANs" / "Other").mkdir()
    (root / "GANs" / "Other" / "000000.jpg").write_bytes(encoded_image())  # a name that another method has too
    lines = (synthetic_root / "train.csv").read_text().splitlines()
    (root / "train.csv").write_text("\n".join([*lines[:-40], "AI/GANs/StarGAN/1.jpg,0,0,1,1,0,0", ""]))
    document = pack_into(root, tmp_path / "shards")
    assert (document.images, document.matched, document.rows) == (241, 200, 201)
    assert document.unmatched == {"missing_rows": 1, "missing_images": 41}
    listed = pl.read_parquet(tmp_path / "shards" / "unmatched.parquet").group_by("what", "subset").len()
    assert set(listed.iter_rows()) == {("row", "StarGAN", 1), ("image", "Synthetic", 40), ("image", "Other", 1)}
    images = pl.read_parquet(tmp_path / "shards" / "images.parquet")
    assert images.filter(subset="Other")["gender"].to_list() == [None]
    assert pack_into(root, tmp_path / "annotated", annotated_only=True).images == 200
    only = pack_into(root, tmp_path / "other", subsets=("Other",))
    assert (only.images, only.unmatched) == (1, {"missing_images": 1})
