"""Pointwise convolutions as matrix products: the same numbers and weights."""

from copy import deepcopy

import torch
from torch import nn

from models.detectors.pointwise import MIN_CHANNELS, PointwiseConv2d, use_matrix_products


def build_net() -> nn.Sequential:
    wide = nn.Conv2d(MIN_CHANNELS, 8, 1, bias=False)
    others = [nn.Conv2d(3, MIN_CHANNELS, 1), wide, nn.Conv2d(8, 8, 3), nn.Conv2d(8, MIN_CHANNELS, 1)]
    strided, grouped = nn.Conv2d(MIN_CHANNELS, MIN_CHANNELS, 1, 2), nn.Conv2d(MIN_CHANNELS, 4, 1, groups=2)
    return nn.Sequential(*others, strided, grouped).to(memory_format=torch.channels_last)


def test_only_wide_pointwise_convolutions_become_matrix_products():
    net = build_net()
    weights = list(net.parameters())
    use_matrix_products(net)
    assert [type(layer) is PointwiseConv2d for layer in net] == [False, True, False, False, False, False]
    assert all(one is other for one, other in zip(net.parameters(), weights, strict=True))


def test_outputs_gradients_and_memory_format_are_those_of_the_convolution():
    net = build_net()
    product = deepcopy(net)
    use_matrix_products(product)
    images = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    assert product[:2](images).is_contiguous(memory_format=torch.channels_last)
    outputs = [each(images) for each in (net, product)]
    assert torch.allclose(*outputs, rtol=1e-4, atol=1e-5)
    for output in outputs:
        output.square().sum().backward()
    for one, other in zip(net.parameters(), product.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-4)
