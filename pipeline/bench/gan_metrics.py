"""Metrics of how well a labelled run keeps the groups: shares, Frechet distance, coverage and recall."""

from pathlib import Path

import numpy as np
import polars as pl

import sql
from reports.estimation.embeddings import read_embeddings
from reports.estimation.kernel_distance import Array, squared_distances
from reports.estimation.quality import MIN_IMAGES, K, covered_share
from shards.attributes import workspace_attributes
from shards.workspace import Workspace

RARE = 0.05  # largest training share of a group that counts as rare
IMAGES = 2000  # at most, of each side of a comparison of embeddings


def measure_run(workspace: Workspace, run: str) -> dict[str, float]:
    """Return the metrics of a run from the labels and embeddings of samples and training images.

    `tv <attribute>` is the total variation distance between the shares of the samples' labels and those of the training
    images', for labelled attributes; `derived tv <attribute>` is that of an attribute derived from them. `rare` is
    the mean, over rare groups, of the ratio of their share among the samples to that among the training images, at most
    1. `frechet`, `coverage` and `recall` compare samples with training images, and `frechet floor` two sets of training
    images. `coverage of <attribute> <group>` and `recall of <attribute> <group>` are the scores within a group, divided
    by those of other training images of that group; `worst coverage` and `worst recall` are the smallest of them.
    """
    with sql.connect(workspace) as connection:
        table = sql.ask(connection, "side_by_side", attribute="all", run=run)
        groups = sql.select(
            connection,
            """select source, key, attribute, "group" from labels_long join selected_method using (attribute, method)
            where source = 'train' or run = $run""",
            {"run": run},
        )
    attributes = workspace_attributes(workspace)
    derived = [item.name for item in attributes.derived]
    metrics = share_metrics(table.filter(pl.col("attribute").is_in(list(attributes.labelled))))
    distances = share_metrics(table.filter(pl.col("attribute").is_in(derived)))
    metrics |= {f"derived {name}": value for name, value in distances.items() if name.startswith("tv ")}
    return metrics | embedding_metrics(workspace, run, groups=groups)


def share_metrics(table: pl.DataFrame) -> dict[str, float]:
    """The metrics of shares, from the rows of the question `side_by_side`."""
    table = table.drop_nulls(["train_share", "generated_share"])
    train, generated = pl.col("train_share"), pl.col("generated_share")
    distances = table.group_by("attribute", maintain_order=True).agg(distance=(train - generated).abs().sum() / 2)
    rare = table.filter(train.is_between(0, RARE, closed="right")).select((generated / train).clip(upper_bound=1))
    metrics = {f"tv {attribute}": distance for attribute, distance in distances.iter_rows()}
    if len(rare):
        metrics["rare"] = rare.mean().item()
    return metrics


def embedding_metrics(workspace: Workspace, run: str, *, groups: pl.DataFrame) -> dict[str, float]:
    """The metrics of embeddings; `groups` has a row for each source, key and attribute."""
    real, generated = (
        side_embeddings(files.embeddings, groups.filter(source=source))
        for source, files in (
            ("train", workspace.shards.label_files),
            ("generated", workspace.run(run).label_files),
        )
    )
    keys, vectors = real
    n = min(IMAGES, len(vectors) // 2, len(generated[1]))
    first, others, samples = vectors[:n], vectors[n : 2 * n], generated[1][:n]
    metrics = {
        "frechet": frechet_distance(first, samples),
        "frechet floor": frechet_distance(first, others),
        **fidelity(first, samples),
    }
    relative: dict[str, dict[str, float]] = {"coverage": {}, "recall": {}}
    train_groups, generated_groups = groups.filter(source="train"), groups.filter(source="generated")
    for (attribute, group), rows in sorted(train_groups.group_by("attribute", "group"), key=lambda item: item[0]):
        real_vectors = vectors[keys.is_in(rows["key"].implode()).to_numpy()]
        sample_keys = generated_groups.filter(attribute=attribute, group=group)["key"]
        sample_vectors = generated[1][generated[0].is_in(sample_keys.implode()).to_numpy()]
        n = min(IMAGES, len(real_vectors) // 2, len(sample_vectors))
        scores, best_scores = dict.fromkeys(relative, 0.0), dict.fromkeys(relative, 1.0)
        if n >= MIN_IMAGES:
            best_scores = fidelity(real_vectors[:n], real_vectors[n : 2 * n])
            scores = fidelity(real_vectors[:n], sample_vectors[:n])
        elif len(real_vectors) // 2 < MIN_IMAGES:  # otherwise, the group is hardly ever generated, and has scores of 0
            continue
        for name, values in relative.items():
            values[f"{name} of {attribute} {group}"] = scores[name] / max(best_scores[name], 1e-9)
    for name, values in relative.items():
        metrics |= values | ({f"worst {name}": min(values.values())} if values else {})
    return metrics


def side_embeddings(path: Path, groups: pl.DataFrame) -> tuple[pl.Series, Array]:
    """The keys of one side's labelled images, in order, and their embeddings, float32 [N, D]."""
    table = read_embeddings(path, groups["key"].unique()).sort("key")
    return table["key"], table["embedding"].to_numpy()


def fidelity(real: Array, generated: Array) -> dict[str, float]:
    """Coverage and recall of embeddings, float32 [n, D] each: the share of real ones with a generated one nearby.

    For coverage, nearby means within the real embedding's distance to its K-th nearest real neighbour (Naeem et al.
    2020, arXiv:2002.09797); for recall, within the generated embedding's distance to its K-th nearest generated
    neighbour (Kynkaanniemi et al. 2019, arXiv:1904.06991).
    """
    across = squared_distances(real, generated)
    radii = np.partition(squared_distances(generated, generated), K, axis=1)[:, K]
    return {
        "coverage": covered_share(squared_distances(real, real), across, k=K),
        "recall": float((across <= radii).any(1).mean()),
    }


def frechet_distance(x: Array, y: Array) -> float:
    """Frechet distance between two normal distributions, with the means and covariances of rows [n, D] and [m, D].

    Heusel et al. 2017, arXiv:1706.08500, equation 6. The trace of the square root of the product of the covariances is
    computed as the sum of the square roots of the eigenvalues of a symmetric matrix that is similar to the product.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(0)).sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * cross)
