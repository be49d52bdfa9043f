"""A whole training step as one CUDA graph."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from pipeline.gan.networks import Networks
from shards.errors import FairfaceError

WARM_UP_STEPS = 3  # before a capture


class CapturedStep:
    """Replays a step as one CUDA graph: hundreds of kernel launches become one.

    BatchNorm's statistics, the weights and Adam's state change in place at each replay, as they would without a graph.
    The warm-up runs that CUDA needs before a capture also update them, and are undone.
    https://docs.pytorch.org/docs/stable/notes/cuda.html#whole-network-capture
    """

    def __init__(self, update: Callable[..., Tensor], networks: Networks):
        """`update` takes tensors (or None) and returns the metrics of a step; it changes `networks` in place."""
        self.update, self.networks = update, networks
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        graph = self.graph or self._capture(inputs)
        for place, tensor in zip(self._inputs, inputs, strict=True):
            if place is not None and tensor is not None:
                place.copy_(tensor)
        graph.replay()
        return self._metrics.clone()

    def _capture(self, inputs: tuple[Tensor | None, ...]) -> torch.cuda.CUDAGraph:
        """Record the step; its inputs and outputs then have fixed addresses on the device."""
        self._inputs = [None if tensor is None else tensor.clone() for tensor in inputs]
        state, side = deepcopy(self.networks.state()), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_STEPS):
                self.update(*self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.undo(state)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # DALI's threads may allocate
                self._metrics = self.update(*self._inputs)
        except RuntimeError as error:
            reason = str(error).splitlines()[0][:200]
            raise FairfaceError(
                f"a step can't be captured as a CUDA graph ({reason}): give --no-cuda-graphs"
            ) from error
        self.graph = graph
        return graph

    @torch.no_grad()
    def undo(self, state: dict[str, Any]) -> None:
        """Copy `state` back into the existing tensors, because a graph refers to them by address."""
        for name, network in (("g", self.networks.g), ("d", self.networks.d)):
            network.load_state_dict(state[name])
        for name, adam in (("adam_g", self.networks.adam_g), ("adam_d", self.networks.adam_d)):
            saved = state[name]["state"]
            for number, weight in enumerate(adam.param_groups[0]["params"]):
                for key, tensor in adam.state[weight].items():
                    tensor.copy_(saved[number][key]) if saved else tensor.zero_()
