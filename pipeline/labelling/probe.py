"""Fits the probe to the annotated training images, labels both sides with it, and judges the labellers.

Of the annotated images half are for fitting; what a labeller is worth is measured on the others, which alone stand for
the training side wherever the probe's labels count.
"""

from pathlib import Path

import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from models import clip, probe
from pipeline.labelling import tables
from shards.annotations import intersection, intersection_age, skin_group
from shards.atomic_io import (
    atomic_write,
    fingerprint,
    is_complete_parquet,
    read_json,
    read_parquet,
    write_json,
    write_parquet,
)

MAX_FIT_IMAGES = 50_000  # images at most that the probe is fitted to
FITTED_FILES = ("probe.safetensors", "probe.parquet", "labellers.parquet")
EVALUATED_ATTRIBUTES = ("gender", "age", "skin_tone", "skin_group", "intersection", "intersection_age")


def evaluate_labellers(shards: Path, samples: Path, force: bool = False) -> pl.DataFrame | None:
    """Probes and judges the labels in `shards` (the training side), and probes those in `samples`.

    Writes probe.safetensors and labellers.parquet into `shards` and probe.parquet into both; returns the latter's
    rows: attribute, method, labeller, n, accuracy, balanced_accuracy, chosen. None, and none of the files, where
    too few images are annotated.
    """
    images = read_parquet(shards / "images.parquet").filter(status="packed")
    labelled = read_json(shards / "labels.json")
    stamp = fingerprint([probe.VERSION, labelled["fingerprint"]])
    old = read_json(shards / "probe.json") or {}
    there = all(is_complete_parquet(shards / name) for name in ("probe.parquet", "labellers.parquet"))
    if old.get("fingerprint") != stamp or force or not there or not load_probe(shards, old):
        for name in ("probe.json", *FITTED_FILES):
            (shards / name).unlink(missing_ok=True)
        if not (fitted := fit(shards, images, labelled)):
            (samples / "probe.parquet").unlink(missing_ok=True)
            (samples / "probe.json").unlink(missing_ok=True)
            mark_evaluated(shards, samples)
            return None
        old = {"fingerprint": stamp, "hash": fitted.hash}
        write_json(shards / "probe.json", old)
    probe_samples(samples, load_probe(shards, old), force)
    mark_evaluated(shards, samples)
    return read_parquet(shards / "labellers.parquet")


def mark_evaluated(*folders: Path) -> None:
    """Marks labels as judged: what was killed before is not taken for whole."""
    for folder in folders:
        labelled = read_json(folder / "labels.json")
        if not labelled.get("judged"):
            write_json(folder / "labels.json", labelled | {"judged": True})


def load_probe(shards: Path, about: dict) -> probe.Probe | None:
    """The probe in `shards`, if it is whole and the one that probe.json is `about`."""
    try:
        fitted = probe.Probe(load_file(shards / "probe.safetensors"))
    except (SafetensorError, OSError):
        return None
    return fitted if fitted.hash == about.get("hash") else None


def annotations_of(images: pl.DataFrame, keys: pl.Series) -> pl.DataFrame:
    """key, gender, age, skin_tone (text), skin_group and the intersections of the images `keys`, in their order."""
    columns = [name for name in ("gender", "age", "skin_tone") if name in images.columns]
    table = keys.to_frame("key").join(images.select("key", *columns), on="key", how="left", maintain_order="left")
    return add_derived_attributes(
        table.with_columns(pl.lit(None, pl.Int8).alias(n) for n in clip.CLASSES if n not in columns)
    )


def add_derived_attributes(table: pl.DataFrame) -> pl.DataFrame:
    """Adds skin_group and the intersections; everything as text."""
    table = table.with_columns(skin_group=skin_group()).with_columns(
        intersection=intersection(), intersection_age=intersection_age()
    )
    return table.with_columns(pl.col(*EVALUATED_ATTRIBUTES).cast(pl.String))


def fit(shards: Path, images: pl.DataFrame, labelled: dict) -> probe.Probe | None:
    """Fits and saves the probe, labels the images that it has not seen, and judges; None for too few annotations."""
    embeddings = read_parquet(shards / "embeddings.parquet")
    truth = annotations_of(images, embeddings["key"])
    numbers = {
        name: torch.from_numpy(
            truth[name]
            .replace_strict(dict(zip(names, range(len(names)), strict=True)), default=-1, return_dtype=pl.Int64)
            .fill_null(-1)
            .to_numpy()
            .copy()
        )
        for name, names in clip.CLASSES.items()
    }
    known = torch.stack(list(numbers.values())).ge(0).any(0)
    if not known.any():
        return None
    # every second image, annotated or not: those that are left are like the whole, whichever of them are annotated
    aside = torch.arange(len(known)) % 2 == 0
    aside &= (aside & known).cumsum(0) <= MAX_FIT_IMAGES
    seen = aside & known
    vectors = torch.from_numpy(embeddings["embedding"].to_numpy().copy())
    fitted = probe.Probe.fit(vectors[seen], {name: values[seen] for name, values in numbers.items()})
    if not fitted.attributes:
        return None
    with atomic_write(shards / "probe.safetensors") as file:
        file.write(save(fitted.state))
    left = pl.Series((~aside).numpy())
    labels = write_labels(shards, embeddings["key"].filter(left), vectors[~aside], fitted, labelled)
    clips, pixels = (read_parquet(shards / f"{name}.parquet").filter(left) for name in ("labels", "pixels"))
    table = accuracy_table(truth.filter(left), {"clip": clips, "probe": labels, "pixels": pixels})
    write_parquet(shards / "labellers.parquet", table)
    return fitted


def write_labels(
    folder: Path, keys: pl.Series, vectors: torch.Tensor, fitted: probe.Probe, labelled: dict
) -> pl.DataFrame:
    """Writes and returns what the probe says of embeddings [N, D], as probe.parquet."""
    said = fitted.probabilities(vectors)
    labels = tables.label_frame(keys, torch.cat([said[name] for name in clip.CLASSES], 1).numpy())
    labeller = f"probe-{fitted.hash} of {labelled['labeller']}"
    return tables.write_label_table(folder / "probe.parquet", labels, labelled, "probe", labeller)


def accuracy_table(truth: pl.DataFrame, methods: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """Accuracy and balanced accuracy (mean recall) of each method, by attribute, on images that neither was fitted to.

    The better one of CLIP and probe by balanced accuracy is chosen, CLIP on a tie; the pixels are a check only.
    """
    rows = []
    for method, labels in methods.items():
        columns = [name for name in clip.CLASSES if name in labels.columns]
        missing = [pl.lit(None, pl.String).alias(name) for name in clip.CLASSES if name not in columns]
        said = add_derived_attributes(labels.select("key", *columns).with_columns(missing))
        for attribute in EVALUATED_ATTRIBUTES:
            pairs = pl.DataFrame({"truth": truth[attribute], "said": said[attribute]}).drop_nulls("truth")
            hits = pairs.with_columns(hit=(pl.col("truth") == pl.col("said")).fill_null(False))
            recalls = hits.group_by("truth").agg(pl.col("hit").mean())["hit"]
            if len(pairs) and said[attribute].null_count() < len(said):
                rows.append(
                    (attribute, method, labels["labeller"][0], len(pairs), hits["hit"].mean(), round(recalls.mean(), 9))
                )
    names = {"attribute": pl.String, "method": pl.String, "labeller": pl.String, "n": pl.Int64, "accuracy": pl.Float64}
    table = pl.DataFrame(rows, schema=names | {"balanced_accuracy": pl.Float64}, orient="row")
    best = (
        table.filter(pl.col("method") != "pixels")
        .sort("balanced_accuracy", "method", descending=[True, False])
        .unique("attribute", keep="first", maintain_order=True)
    )
    return table.join(
        best.select("attribute", "method", chosen=True), on=["attribute", "method"], how="left"
    ).with_columns(pl.col("chosen").fill_null(False))


def probe_samples(samples: Path, fitted: probe.Probe, force: bool) -> None:
    """Labels a run's samples with the probe, unless they are."""
    labelled = read_json(samples / "labels.json")
    stamp = fingerprint([fitted.hash, labelled["fingerprint"]])
    done = read_json(samples / "probe.json") or {}
    if done.get("fingerprint") == stamp and is_complete_parquet(samples / "probe.parquet") and not force:
        return
    embeddings = read_parquet(samples / "embeddings.parquet")
    vectors = torch.from_numpy(embeddings["embedding"].to_numpy().copy())
    write_labels(samples, embeddings["key"], vectors, fitted, labelled)
    write_json(samples / "probe.json", {"fingerprint": stamp})
