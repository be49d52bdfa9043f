"""Communication between the processes of one training run."""

import torch
from torch import Tensor

from pipeline.data.sampler import RankSlice


@torch.no_grad()
def average_across_ranks(tensors: list[Tensor], rank_slice: RankSlice) -> None:
    """Replace each tensor by its mean over all ranks, in place and in one exchange."""
    if rank_slice.world_size == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    torch.distributed.all_reduce(flat)
    flat /= rank_slice.world_size
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))
