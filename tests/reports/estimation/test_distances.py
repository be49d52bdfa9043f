"""Distances between distributions: values by hand and of published tables, floors, and coverage of the intervals."""

import numpy as np
import pytest

from reports.estimation import distances

pytestmark = pytest.mark.usefixtures("full_computations")

# the FairFace Generator's published tables by tone: annotated training images, and CLIP's labels of its samples
TRAINING = np.array([299, 1364, 791, 13245, 51413, 39340, 17562, 7155, 2796, 1801])
GENERATED = np.array([0, 7, 131, 1472, 0, 0, 267, 8, 113, 2])


def count_rows(count, reference, *, seed=0):
    """Rows of distances between counts, or from equal shares without a reference."""
    p, m = count / count.sum(), None
    q = np.full(len(count), 1 / len(count))
    if reference is not None:
        q, m = reference / reference.sum(), reference.sum()
    sampler = distances.count_sampler(count.sum(), m, generator=np.random.default_rng(seed))
    return distances.distance_rows(p, q, sampler=sampler)


def test_distances_of_the_published_tables():
    ten = count_rows(GENERATED, TRAINING)[0]
    groups = [np.array([t[:3].sum(), t[3:6].sum(), t[6:].sum()]) for t in (GENERATED, TRAINING)]
    three = count_rows(*groups)[0]
    assert ten["measure"] == three["measure"] == "total_variation"
    assert ten["value"] == pytest.approx(0.738, abs=5e-4)
    assert three["value"] == pytest.approx(0.051, abs=5e-4)
    assert ten["low"] < ten["value"] < ten["high"]
    assert three["value"] > three["null_floor"] > 0


def test_distances_of_disjoint_and_of_equal_shares():
    disjoint = count_rows(np.array([100, 0]), np.array([0, 100]))
    assert [row["value"] for row in disjoint[:3]] == pytest.approx([1, 1, np.sqrt(2)])
    *equal, diversity = count_rows(np.array([50, 50]), np.array([500, 500]))
    assert all(row["value"] == row["low"] == 0 < row["null_floor"] for row in equal)
    assert all(row["high"] > 0 for row in equal)
    assert diversity["value"] == pytest.approx(diversity["high"]) == pytest.approx(1)
    assert 1 > diversity["null_floor"] > 0.9


def test_distances_from_equal_shares_and_of_a_single_group():
    uniform = count_rows(np.array([75, 25]), None)
    assert uniform[0]["value"] == 0.25
    assert uniform[3]["value"] == pytest.approx(0.811278, abs=1e-6)  # H(1/4), by hand
    assert count_rows(np.array([100, 0]), np.array([50, 50]))[3]["value"] == 0
    assert count_rows(np.array([60, 40]), np.array([50, 0]))[3]["value"] is None  # a reference without diversity
    single = count_rows(np.array([20, 0]), None)[0]
    assert (single["value"], single["high"]) == (0.5, 0.5)
    assert 0.3 < single["low"] < 0.45  # 20 of 20 may be 17 in 20


@pytest.mark.parametrize(
    ("p", "q"), [((0.62, 0.38), (0.6, 0.4)), ((0.1, 0.3, 0.3, 0.2, 0.1), (0.12, 0.3, 0.28, 0.2, 0.1))]
)
def test_intervals_cover_the_truth(p, q):
    generator, p, q = np.random.default_rng(1), np.array(p), np.array(q)
    covered = []
    for seed in range(70):
        rows = count_rows(generator.multinomial(2000, p), generator.multinomial(4000, q), seed=seed)
        truths = [getattr(distances, row["measure"])(p, q) for row in rows]
        covered.append([row["low"] <= truth <= row["high"] for row, truth in zip(rows, truths, strict=True)])
    assert (np.mean(covered, axis=0) >= 0.88).all()  # 95 % less three standard errors of 70 repetitions
