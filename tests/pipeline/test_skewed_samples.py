"""Acceptance test of imported samples: held-out faces, skewed on purpose, get the right verdicts."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import sql
from pipeline.gan.import_samples import ImportConfig, import_samples
from pipeline.labelling import embedded
from pipeline.labelling.label import LabelConfig, label
from reports import page
from shards import pack
from shards.plan import PackConfig
from shards.synthetic import dataset
from shards.synthetic.dataset import SyntheticConfig
from shards.workspace import Workspace

PHOTOGRAPHS = Path(__file__).parents[3] / "shared/reference/annotated-faces"
FACES, SAMPLES = 2000, 350
PHOTOGRAPHED_SAMPLES = 1500
SKEW = {"gender": {"female": 0.75, "male": 0.25}, "age": {"senior": 0.4, "young": 0.4, "middle": 0.2}}
EXPECTED = {("gender", "female"): "amplified", ("gender", "male"): "reduced"}
EXPECTED_OF_SYNTHETIC = EXPECTED | {("age", "senior"): "amplified", ("age", "adult"): "reduced"}
PHOTOGRAPHED_SKEW = {
    "gender": {"female": 0.7, "male": 0.3},
    "race": {"White": 0.25, "Black": 0.45, "Asian": 0.15, "others": 0.15},
    "age": {"young": 0.75, "middle": 0.2, "senior": 0.05},
}
EXPECTED_OF_PHOTOGRAPHS = EXPECTED | {
    ("race", "White"): "reduced",
    ("race", "Black"): "amplified",
    ("age", "senior"): "reduced",
}
VERDICT_RANGES = {"amplified": (1.0, np.inf), "reduced": (0.0, 1.0), "preserved": (0.8, 1.25)}


def skewed_sample(
    faces: pl.DataFrame, shares: Mapping[str, Mapping[str, float]], *, count: int, seed: int
) -> pl.DataFrame:
    """`count` different rows whose annotations have these shares, independently for each attribute."""
    weights = np.ones(len(faces))
    for attribute, wanted in shares.items():
        present = dict(faces[attribute].value_counts(normalize=True).iter_rows())
        ratios = {group: wanted.get(group, 0.0) / share for group, share in present.items()}
        weights *= faces[attribute].replace_strict(ratios, return_dtype=pl.Float64).to_numpy()
    # Efraimidis and Spirakis, Inf. Process. Lett. 97 (2006) 181-185: a weighted sample without replacement
    keys = np.random.default_rng(seed).random(len(faces)) ** (1 / np.maximum(weights, 1e-12))
    return faces[np.argsort(-keys)[:count]]


def pack_halves(root: Path, workspace: Workspace) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Pack half of the images below `root`; return the rows of images.parquet of that half and of the other one."""
    pack.pack(root, workspace.shards, PackConfig(where="hash(path) % 2 = 0"), progress=False)
    everything = Workspace(workspace.root.with_name("all")).shards
    pack.pack(root, everything, progress=False)
    images = pl.read_parquet(everything.images)
    packed = pl.read_parquet(workspace.shards.images)["path"].implode()
    is_packed = pl.col("path").is_in(packed)
    return images.filter(is_packed), images.filter(~is_packed)


def report_on(root: Path, samples: pl.DataFrame, workspace: Workspace) -> pl.DataFrame:
    """Import these images as the samples of a run, label them, and return the comparison with the training images."""
    folder = copy_images(root, samples["path"], workspace.root.with_name("skewed"))
    import_samples(workspace, ImportConfig(str(folder), progress=False))
    label(workspace, LabelConfig(progress=False))
    page.build(workspace)
    return sql.ask(sql.connect(workspace), "comparison", run="skewed")


def contradicted_verdicts(comparison: pl.DataFrame, faces: pl.DataFrame, samples: pl.DataFrame) -> list[tuple]:
    """The verdicts that the annotations of the training images and of the samples contradict."""
    contradicted = []
    for row in comparison.filter(pl.col("verdict") != "inconclusive").iter_rows(named=True):
        known = (side.filter(pl.col(row["attribute"]).is_not_null()) for side in (samples, faces))
        truth, before = ((side[row["attribute"]] == row["group"]).mean() for side in known)
        low, high = VERDICT_RANGES[row["verdict"]]
        if before and not low <= truth / before <= high:
            contradicted.append((row["attribute"], row["group"], row["verdict"], truth / before))
    return contradicted


def verdicts(comparison: pl.DataFrame, groups: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """The verdicts on some groups."""
    found = {(row["attribute"], row["group"]): row["verdict"] for row in comparison.iter_rows(named=True)}
    return {group: found[group] for group in groups}


def test_skewed_held_out_synthetic_faces_get_the_right_verdicts(tmp_path, quick_labeller, monkeypatch):
    monkeypatch.setattr(embedded, "load_embedded", lambda *_, **__: quick_labeller)
    root, workspace = tmp_path / "faces", Workspace(tmp_path / "out")
    dataset.write_dataset(root, SyntheticConfig(count=FACES, size=64, seed=4), progress=False)
    faces, held_out = pack_halves(root, workspace)
    samples = skewed_sample(held_out, SKEW, count=SAMPLES, seed=0)
    comparison = report_on(root, samples, workspace)
    compared = comparison.filter(pl.col("attribute").is_in([*SKEW, "skin_group"]))
    assert contradicted_verdicts(compared, faces, samples) == []
    assert verdicts(comparison, EXPECTED_OF_SYNTHETIC) == EXPECTED_OF_SYNTHETIC


@pytest.mark.attack  # fits the classifier, which takes minutes
@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the annotated photographs are not available")
def test_held_out_photographs_that_are_skewed_get_the_right_verdicts(tmp_path):
    workspace = Workspace(tmp_path / "out")
    faces, held_out = pack_halves(PHOTOGRAPHS, workspace)
    held_out = held_out.drop_nulls(list(PHOTOGRAPHED_SKEW))
    samples = skewed_sample(held_out, PHOTOGRAPHED_SKEW, count=PHOTOGRAPHED_SAMPLES, seed=0)
    comparison = report_on(PHOTOGRAPHS, samples, workspace)
    compared = comparison.filter(pl.col("attribute").is_in(list(PHOTOGRAPHED_SKEW)))
    assert contradicted_verdicts(compared, faces, samples) == []
    assert verdicts(comparison, EXPECTED_OF_PHOTOGRAPHS) == EXPECTED_OF_PHOTOGRAPHS


def copy_images(root: Path, paths: pl.Series, folder: Path) -> Path:
    """Copy images into one plain folder, as another program writes them."""
    folder.mkdir()
    for number, path in enumerate(paths):
        shutil.copy(root / path, folder / f"{number:05d}{Path(path).suffix}")
    return folder
