"""Random streams are functions of their place."""

import torch

from pipeline.data.random_streams import seeded_generator


def test_neighbouring_streams_are_unrelated():
    samples = [torch.randn(1000, generator=seeded_generator("cpu", seed, step)) for seed in (0, 1) for step in (0, 1)]
    correlations = torch.corrcoef(torch.stack(samples)) - torch.eye(4)
    assert correlations.abs().max() < 0.15
    assert torch.equal(samples[0], torch.randn(1000, generator=seeded_generator("cpu", 0, 0)))
