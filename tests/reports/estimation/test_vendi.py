"""The Vendi score has its known values, and tells a collapsed generator from real images."""

import numpy as np
import pytest

from reports.estimation.kernel_distance import gaussian_kernel, squared_distances
from reports.estimation.vendi import MAX_IMAGES, compare_diversity, vendi_score


def unit_vectors(generator, count, dimensions=32):
    vectors = generator.normal(size=(count, dimensions))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def kernel(vectors):
    return gaussian_kernel(squared_distances(vectors, vectors), 1.0)


@pytest.mark.parametrize("n", [1, 2, 17, 200])
def test_equal_images_count_once_and_unrelated_ones_each(n):
    assert vendi_score(np.ones((n, n), np.float32)) == pytest.approx(1)
    assert vendi_score(np.eye(n, dtype=np.float32)) == pytest.approx(n)


def test_equal_groups_of_equal_images_count_as_often_as_there_are_groups():
    groups = np.arange(60) % 5
    assert vendi_score((groups[:, None] == groups).astype(float)) == pytest.approx(5)


def test_two_images_are_scored_by_the_formula():
    """The eigenvalues of K / 2 are (1 + s) / 2 and (1 - s) / 2."""
    values = np.array([0.75, 0.25])
    expected = np.exp(-(values * np.log(values)).sum())
    assert vendi_score(np.array([[1, 0.5], [0.5, 1]])) == pytest.approx(expected)


def test_the_order_of_images_and_a_rotation_of_their_embeddings_do_not_matter():
    generator = np.random.default_rng(0)
    vectors = unit_vectors(generator, 50)
    rotation = np.linalg.qr(generator.normal(size=(32, 32)))[0].astype(np.float32)
    score = vendi_score(kernel(vectors))
    assert vendi_score(kernel(vectors[generator.permutation(50)])) == pytest.approx(score, rel=1e-4)
    assert vendi_score(kernel(vectors @ rotation)) == pytest.approx(score, rel=1e-4)
    assert 1 < score < 50


@pytest.mark.parametrize("matrix", [np.zeros((3, 3)), np.eye(3) * 2, np.eye(0), np.full((2, 2), np.nan)])
def test_an_invalid_kernel_is_refused(matrix):
    with pytest.raises(ValueError, match="ones on its diagonal"):
        vendi_score(matrix)


def test_real_images_are_as_diverse_as_others_and_copies_are_not():
    generator = np.random.default_rng(1)
    for n, m in ((30, 60), (30, 200)):  # a set of real images is half of them, or a small part
        below = 0
        for _ in range(200):
            vectors = unit_vectors(generator, n + m, dimensions=8)
            diversity = compare_diversity(kernel(vectors[m:]), kernel(vectors[:m]), generator=generator)
            below += diversity.generated < diversity.floor
            assert diversity.floor < diversity.real
        assert 1 <= below <= 20  # 10 are expected, with a standard deviation of 3
    vectors = unit_vectors(generator, 200)
    copies = np.repeat(vectors[:10], 10, axis=0)
    collapsed = compare_diversity(kernel(copies), kernel(vectors), generator=generator)
    assert collapsed.generated < 10.01
    assert collapsed.generated < 0.5 * collapsed.floor


def test_equally_many_images_are_scored():
    generator = np.random.default_rng(2)
    vectors = unit_vectors(generator, 3 * MAX_IMAGES, dimensions=400)
    for n, m, expected in ((30, 200, 30), (150, 60, 30), (2 * MAX_IMAGES, 2 * MAX_IMAGES, MAX_IMAGES)):
        diversity = compare_diversity(np.eye(n), np.eye(m), generator=generator)
        assert diversity == pytest.approx((expected, expected, expected))
    assert compare_diversity(kernel(vectors[:30]), kernel(vectors), generator=generator).generated <= 30
