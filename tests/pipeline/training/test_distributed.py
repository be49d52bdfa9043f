"""What ranks exchange."""

import torch

from pipeline.data.sampler import RankSlice
from pipeline.training.distributed import average_across_ranks


def test_ranks_take_the_mean_of_their_tensors(monkeypatch):
    ours, theirs = [torch.arange(6.0).view(2, 3), torch.tensor(5.0)], [torch.full((2, 3), 2.0), torch.tensor(1.0)]
    other = torch.cat([tensor.flatten() for tensor in theirs])
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.add_(other))
    average_across_ranks(ours, RankSlice(0, 2))
    assert ours[0].tolist() == [[1.0, 1.5, 2.0], [2.5, 3.0, 3.5]]
    assert ours[1].item() == 3.0
