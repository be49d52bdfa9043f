"""Coverage by brute force, and the floors of coverage and kernel distance."""

import math

import numpy as np
import pytest

from reports.estimation import quality
from reports.estimation.kernel_distance import gaussian_kernel, kernel_distance, squared_distances
from tests.reports.estimation.embedded_images import random_embeddings


@pytest.mark.parametrize("k", [1, 3, 5])
def test_coverage_equals_the_brute_force(k):
    generator = np.random.default_rng(4)
    real, generated = random_embeddings(generator, 40), random_embeddings(generator, 12, 1.0)
    hits = 0
    for i, x in enumerate(real):
        radius = sorted(np.linalg.norm(x - other) for j, other in enumerate(real) if j != i)[k - 1]
        hits += any(np.linalg.norm(x - y) <= radius for y in generated)
    assert quality.coverage(real, generated, k=k) == hits / 40
    assert 0 < hits < 40


def test_coverage_at_its_ends():
    generator = np.random.default_rng(5)
    real = random_embeddings(generator, 300, dimensions=32)
    fresh = [quality.coverage(real, random_embeddings(generator, 300, dimensions=32)) for _ in range(20)]
    assert np.mean(fresh) == pytest.approx(quality.expected_coverage(300), abs=0.015)
    assert quality.coverage(real, real.astype(np.float64)) == 1
    collapsed = np.tile(random_embeddings(generator, 1, dimensions=32), (300, 1))
    assert quality.coverage(real, collapsed) < 0.1
    assert quality.coverage(real, random_embeddings(generator, 300, 9.0, dimensions=32)) < 0.1
    assert quality.coverage(real, real[:0]) == 0
    copies = np.repeat(real[:10], 6, axis=0)  # their radii are 0: only copies cover them
    assert quality.coverage(copies, real[:3].astype(np.float16)) == 0
    assert quality.coverage(copies, real[:3]) == 0.3
    with pytest.raises(ValueError, match="more than 5 real images, got 5"):
        quality.coverage(real[:5], real)


def test_expected_coverage_by_hand(monkeypatch):
    monkeypatch.setattr(quality, "K", 1)
    assert quality.expected_coverage(2) == pytest.approx(2 / 3)  # of 3 others, 1 is real: is it the nearest?
    monkeypatch.setattr(quality, "K", 5)
    assert quality.expected_coverage(10**6) == pytest.approx(1 - 2**-5, abs=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_floors_are_those_of_the_halves(seed, monkeypatch):
    monkeypatch.setattr(quality, "SPLITS", 1)
    real = random_embeddings(np.random.default_rng(6), 60, dimensions=3)
    distances = squared_distances(real, real)
    kernel = gaussian_kernel(distances, 0.8)
    half = np.random.default_rng(seed).permuted(np.arange(60)[None] < 30, axis=1)[0]
    distance = kernel_distance(real[half], real[~half], bandwidth=0.8)
    share = quality.coverage(real[half], real[~half])
    floors = quality.split_half_floors(distances, kernel, n=30, generator=np.random.default_rng(seed))
    assert floors == pytest.approx((distance, share), abs=1e-6)
    floor, coverage_floor = quality.split_half_floors(distances, kernel, n=60, generator=np.random.default_rng(seed))
    assert floor == pytest.approx(distance / 2, abs=1e-6)
    extrapolated = quality.expected_coverage(60) + (share - quality.expected_coverage(30)) / math.sqrt(2)
    assert coverage_floor == pytest.approx(math.floor(extrapolated * 60) / 60)
