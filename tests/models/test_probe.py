"""The probe: multinomial logistic regression on embeddings."""

import pytest
import torch

from models.probe import Probe

pytestmark = pytest.mark.usefixtures("full_computations")

SIZES = {"gender": 2, "skin_tone": 10}


def clusters(count, seed=0):
    """Embeddings [count, 16] in ten clusters, and the cluster of each, int64 [count]."""
    rng = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, 10, (count,), generator=rng)
    return 3 * torch.eye(10, 16)[classes] + 0.5 * torch.randn(count, 16, generator=rng), classes


def test_a_probe_separates_clusters_and_excludes_absent_classes_and_unannotated_attributes():
    embeddings, tones = clusters(3000)
    classes = {"skin_tone": torch.where(tones == 9, -1, tones), "gender": torch.full((3000,), -1)}
    probe = Probe.fit(embeddings, classes, sizes=SIZES)
    held_out, truth = clusters(1000, seed=1)
    probabilities = probe.probabilities(held_out)
    frequent = truth != 9
    assert (probabilities["skin_tone"].argmax(1) == truth)[frequent].float().mean() > 0.98
    assert torch.allclose(probabilities["skin_tone"].sum(1), torch.ones(1000), atol=1e-5)
    assert (probabilities["skin_tone"][:, 9] < 1e-6).all()
    assert probe.attributes == list(probabilities) == ["skin_tone"]
    assert Probe.fit(embeddings, classes, sizes=SIZES).hash == probe.hash
    assert Probe.fit(embeddings, {"skin_tone": tones.flip(0)}, sizes=SIZES).hash != probe.hash


def test_the_penalty_keeps_a_probe_of_noise_from_being_certain():
    rng = torch.Generator().manual_seed(0)
    noise, coin = torch.randn(300, 64, generator=rng), torch.randint(0, 2, (300,), generator=rng)
    probe = Probe.fit(noise, {"gender": coin}, sizes=SIZES)
    probabilities = probe.probabilities(torch.randn(500, 64, generator=rng))["gender"]
    # without a penalty it separates 300 points of 64 dimensions with certainty
    assert probabilities.max(1).values.mean() < 0.97
