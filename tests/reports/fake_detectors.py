"""Detectors of fakes of several generators, one of them trained without a family, as `fairface detect` leaves them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from shards.documents import DetectorConfig, DetectorData, write_document
from shards.workspace import Workspace
from tests.reports.fake_workspace import MANIFEST, predictions_document, record, replace_table

GENERATORS = (("Real", "FFHQ"), ("GANs", "ProGAN"), ("GANs", "StyleGAN"), ("DMs", "Palette"))


def name_generators(out: Path) -> pl.DataFrame:
    """Spread the images of an OUT folder over GENERATORS; returns their rows."""
    path = out / "shards" / "images.parquet"
    images = pl.read_parquet(path)
    folders = [GENERATORS[i % len(GENERATORS)] for i in range(len(images))]
    target = ["real" if family == "Real" else "fake" for family, _ in folders]
    images = images.with_columns(
        family=pl.Series([family for family, _ in folders]),
        subset=pl.Series([method for _, method in folders]),
        target=pl.Series(target),
    )
    replace_table(path, images)
    return images


def add_detector(
    out: Path,
    name: str,
    logits: np.ndarray,
    *,
    images: pl.DataFrame,
    held_out: Sequence[str] = (),
    steps: int = 300,
    **options: object,
) -> None:
    """A detector with these logits of `images`, trained with `options` and without the generators `held_out`."""
    folder = Workspace(out).detector(name)
    folder.folder.mkdir(parents=True)
    constant = {"detector": name, "part": "test", "source": "images", "perturbation": "none", "grouped_by": "annotated"}
    table = images.select("key", "target", run=pl.lit(None, pl.String), logit=pl.Series(logits))
    table.with_columns(pl.lit(value).alias(column) for column, value in constant.items()).write_parquet(
        folder.predictions
    )
    data = DetectorData(
        manifest=MANIFEST,
        run=None,
        grouped_by="annotated",
        groups_hash=None,
        attribute="gender",
        train_real=1,
        train_fake=1,
        test_real=1,
        test_fake=1,
        held_out=list(held_out),
    )
    config = DetectorConfig(
        name=name,
        status="finished",
        started="2026-01-01",
        steps=steps,
        requested_options={"model": "xception", "pretrained": None, "feed": "auto"} | options,
        data=data,
        group_counts={},
        steps_per_epoch=300,
    )
    write_document(folder.config, config)
    write_document(folder.predictions_document, predictions_document())
    record(folder.predictions)
