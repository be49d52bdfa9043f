"""Measures of what a training recipe does to the groups: shares, distance, coverage and recall of a labelled run."""

from pathlib import Path

import numpy as np
import polars as pl

import sql
from reports.estimation.embeddings import read_embeddings
from reports.estimation.kernel_distance import Array, squared_distances
from reports.estimation.quality import MIN_IMAGES, K, covered_share
from shards.workspace import Workspace
from sql.catalog import attribute_names

RARE = 0.05  # training share below which a group counts as rare
IMAGES = 2000  # of each side that are compared by embedding


def measure_run(workspace: Workspace, run: str) -> dict[str, float]:
    """Measure a labelled run by its labels and embeddings, each side labelled by the same labeller.

    `tv <attribute>` is the total variation distance of the samples' labels from the training images'; `rare` the mean
    over rare groups of their share among the samples over that among the training images, at most 1; `frechet`,
    `coverage` and `recall` compare all images; `worst coverage` and `worst recall` are those of the worst group over
    what other real images of the group score.
    """
    with sql.connect(workspace) as connection:
        table = sql.ask(connection, "side_by_side", attribute="all", run=run)
        table = table.filter(pl.col("attribute").is_in(attribute_names(connection)["@labelled"]))
        groups = sql.select(
            connection,
            """select source, key, attribute, "group" from labels_long join selected_method using (attribute, method)
            where source = 'train' or run = $run""",
            {"run": run},
        )
    return share_metrics(table) | embedding_metrics(workspace, run, groups=groups)


def share_metrics(table: pl.DataFrame) -> dict[str, float]:
    """The measures of shares from the rows of the question `side_by_side`."""
    table = table.drop_nulls(["train_share", "generated_share"])
    train, generated = pl.col("train_share"), pl.col("generated_share")
    distances = table.group_by("attribute", maintain_order=True).agg(distance=(train - generated).abs().sum() / 2)
    rare = table.filter(train.is_between(0, RARE, closed="right")).select((generated / train).clip(upper_bound=1))
    metrics = {f"tv {attribute}": distance for attribute, distance in distances.iter_rows()}
    if len(rare):
        metrics["rare"] = rare.mean().item()
    return metrics


def embedding_metrics(workspace: Workspace, run: str, *, groups: pl.DataFrame) -> dict[str, float]:
    """The measures of embeddings; `groups` has a row for each source, key and attribute."""
    real, generated = (
        side_embeddings(files.embeddings, groups.filter(source=source))
        for source, files in (
            ("train", workspace.shards.label_files),
            ("generated", workspace.run(run).label_files),
        )
    )
    keys, vectors = real
    others = vectors[IMAGES : 2 * IMAGES]
    first, samples = vectors[:IMAGES], generated[1][:IMAGES]
    metrics = {
        "frechet": frechet_distance(first, samples),
        "frechet floor": frechet_distance(first, others),
        **fidelity(first, samples, prefix=""),
    }
    worst: dict[str, list[float]] = {"coverage": [], "recall": []}
    train, made = groups.filter(source="train"), groups.filter(source="generated")
    for (attribute, group), rows in train.group_by("attribute", "group"):
        ours = vectors[keys.is_in(rows["key"].implode()).to_numpy()]
        theirs = generated[1][
            generated[0].is_in(made.filter(attribute=attribute, group=group)["key"].implode()).to_numpy()
        ]
        n = min(len(ours) // 2, len(theirs), IMAGES)
        if len(ours) // 2 >= MIN_IMAGES and n < MIN_IMAGES:  # hardly ever generated
            for values in worst.values():
                values.append(0.0)
        elif n >= MIN_IMAGES:
            floors = fidelity(ours[:n], ours[n : 2 * n])
            values_of_group = fidelity(ours[:n], theirs[:n])
            for name, values in worst.items():
                values.append(values_of_group[name] / max(floors[name], 1e-9))
    return metrics | {f"worst {name}": min(values) for name, values in worst.items() if values}


def side_embeddings(path: Path, groups: pl.DataFrame) -> tuple[pl.Series, Array]:
    """The keys of one side's labelled images, in order, and their embeddings, float32 [N, D]."""
    table = read_embeddings(path, groups["key"].unique()).sort("key")
    return table["key"], table["embedding"].to_numpy()


def fidelity(real: Array, generated: Array, *, prefix: str = "") -> dict[str, float]:
    """Coverage and recall of rows [n, D]: the shares of real ones near a generated one, by the radius of either.

    Coverage takes each real row's distance to its K-th nearest real one (Naeem et al. 2020, arXiv:2002.09797), recall
    each generated row's distance to its K-th nearest generated one (Kynkaanniemi et al. 2019, arXiv:1904.06991).
    """
    across = squared_distances(real, generated)
    radii = np.partition(squared_distances(generated, generated), K, axis=1)[:, K]
    return {
        f"{prefix}coverage": covered_share(squared_distances(real, real), across, k=K),
        f"{prefix}recall": float((across <= radii).any(1).mean()),
    }


def frechet_distance(x: Array, y: Array) -> float:
    """Frechet distance between normal distributions with the means and covariances of rows [n, D] and [m, D].

    Heusel et al. 2017, arXiv:1706.08500, equation 6; the trace of the root of the product of the covariances is the sum
    of the roots of the eigenvalues of a symmetric matrix similar to it.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(0)).sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * cross)
