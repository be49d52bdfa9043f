"""The acceptance of samples of another program: held-out faces, skewed on purpose, get verdicts that are right."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

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

FACES, SAMPLES = 2000, 350
SKEW = {"gender": {"female": 0.75, "male": 0.25}, "age": {"senior": 0.4, "young": 0.4, "middle": 0.2}}
VERDICT_RANGES = {"amplified": (1.0, np.inf), "reduced": (0.0, 1.0), "preserved": (0.8, 1.25)}


def skewed_sample(
    faces: pl.DataFrame, shares: Mapping[str, Mapping[str, float]], *, count: int, seed: int
) -> pl.DataFrame:
    """`count` different rows whose annotations have given shares, those of several attributes independently."""
    weights = np.ones(len(faces))
    for attribute, wanted in shares.items():
        present = dict(faces[attribute].value_counts(normalize=True).iter_rows())
        ratios = {group: wanted.get(group, 0.0) / share for group, share in present.items()}
        weights *= faces[attribute].replace_strict(ratios, return_dtype=pl.Float64).to_numpy()
    # Efraimidis and Spirakis, Inf. Process. Lett. 97 (2006) 181-185: a weighted sample without replacement
    keys = np.random.default_rng(seed).random(len(faces)) ** (1 / np.maximum(weights, 1e-12))
    return faces[np.argsort(-keys)[:count]]


def check_verdicts(workspace: Workspace, faces: pl.DataFrame, samples: pl.DataFrame, *, run: str) -> None:
    """Assert that no verdict contradicts the annotations, and that the groups that were skewed most have theirs."""
    rows = sql.ask(sql.connect(workspace), "comparison", run=run)
    contradicted, decided = [], {}
    for row in rows.filter(pl.col("attribute").is_in([*SKEW, "skin_group"])).iter_rows(named=True):
        truth, before = ((side[row["attribute"]] == row["group"]).mean() for side in (samples, faces))
        decided[row["attribute"], row["group"]] = row["verdict"]
        if row["verdict"] != "inconclusive" and before:
            low, high = VERDICT_RANGES[row["verdict"]]
            if not low <= truth / before <= high:
                contradicted.append((row["attribute"], row["group"], row["verdict"], truth / before))
    assert not contradicted
    assert decided["gender", "female"] == "amplified"
    assert decided["gender", "male"] == "reduced"
    assert decided["age", "senior"] == "amplified"
    assert decided["age", "adult"] == "reduced"


def test_skewed_held_out_synthetic_faces_get_the_right_verdicts(tmp_path, quick_labeller, monkeypatch):
    monkeypatch.setattr(embedded, "load_embedded", lambda *_, **__: quick_labeller)
    root, workspace = tmp_path / "faces", Workspace(tmp_path / "out")
    dataset.write_dataset(root, SyntheticConfig(count=FACES, size=64, seed=4), progress=False)
    pack.pack(root, workspace.shards, PackConfig(where="hash(path) % 2 = 0"), progress=False)
    everything = Workspace(tmp_path / "all").shards
    pack.pack(root, everything, progress=False)
    images = pl.read_parquet(everything.images)
    packed = pl.read_parquet(workspace.shards.images)["path"].implode()
    faces, held_out = (images.filter(pl.col("path").is_in(packed) == is_packed) for is_packed in (True, False))
    samples = skewed_sample(held_out, SKEW, count=SAMPLES, seed=0)
    folder = copy_images(root, samples["path"], tmp_path / "skewed")
    import_samples(workspace, ImportConfig(str(folder), progress=False))
    label(workspace, LabelConfig(progress=False))
    page.build(workspace)
    check_verdicts(workspace, faces, samples, run="skewed")


def copy_images(root: Path, paths: pl.Series, folder: Path) -> Path:
    """Copy images into one plain folder, as another program writes them."""
    folder.mkdir()
    for number, path in enumerate(paths):
        shutil.copy(root / path, folder / f"{number:05d}{Path(path).suffix}")
    return folder
