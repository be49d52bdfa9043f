"""The probe: multinomial logistic regression on embeddings."""

import torch

from models.probe import MIN_CLASS_IMAGES, Probe


def clusters(count, seed=0):
    """Embeddings [count, 16] in ten clusters, and the cluster of each, int64 [count]."""
    rng = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, 10, (count,), generator=rng)
    return 3 * torch.eye(10, 16)[classes] + 0.5 * torch.randn(count, 16, generator=rng), classes


def test_a_probe_separates_clusters_and_excludes_rare_classes_and_unannotated_attributes():
    embeddings, tones = clusters(3000)
    tones = torch.where((tones == 9) & (torch.arange(3000) > 100), -1, tones)  # a dozen of them are annotated
    genders = torch.full((3000,), -1)
    assert (tones == 9).sum() < MIN_CLASS_IMAGES
    probe = Probe.fit(embeddings, {"skin_tone": tones, "gender": genders})
    held_out, truth = clusters(1000, seed=1)
    probabilities = probe.probabilities(held_out)
    frequent = truth != 9
    assert (probabilities["skin_tone"].argmax(1) == truth)[frequent].float().mean() > 0.98
    assert torch.allclose(probabilities["skin_tone"].sum(1), torch.ones(1000), atol=1e-5)
    assert (probabilities["skin_tone"][:, 9] < 1e-6).all()
    assert probabilities["gender"].isnan().all()
    assert probabilities["age"].isnan().all()
    again = Probe.fit(embeddings, {"skin_tone": tones, "gender": genders})
    assert again.hash == probe.hash
    assert Probe.fit(embeddings, {"skin_tone": tones.flip(0)}).hash != probe.hash


def test_the_penalty_keeps_a_probe_of_noise_from_being_certain():
    rng = torch.Generator().manual_seed(0)
    noise, coin = torch.randn(300, 64, generator=rng), torch.randint(0, 2, (300,), generator=rng)
    probabilities = Probe.fit(noise, {"gender": coin}).probabilities(torch.randn(500, 64, generator=rng))["gender"]
    # without a penalty it separates 300 points of 64 dimensions with certainty
    assert probabilities.max(1).values.mean() < 0.97
