"""The form that XNNPACK delegates answers as GroupNorm does."""

from __future__ import annotations

import torch
from torch import nn

from harmony.core.models import FrontEnd, feature_spec
from harmony.core.spec import Architecture, ImageSpec
from harmony.export.delegable import DelegableGroupNorm, make_delegable


def test_same_numbers_as_group_norm() -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(3, 24)
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    x = 5 + 3 * torch.randn(2, 24, 5, 7)
    torch.testing.assert_close(DelegableGroupNorm(norm)(x), norm(x), atol=1e-5, rtol=1e-5)


def test_a_constant_input_does_not_divide_by_zero() -> None:
    norm = nn.GroupNorm(1, 8)
    torch.testing.assert_close(DelegableGroupNorm(norm)(torch.ones(1, 8, 3, 3)), torch.zeros(1, 8, 3, 3))


def test_every_group_norm_of_a_front_end_is_replaced() -> None:
    image = ImageSpec(height=12, width=12, channels=3, mean=(0,) * 3, std=(1,) * 3)
    network = FrontEnd(Architecture.parse("mobilenet-w8-d2"), image, feature_spec(image, 8), outputs=3, gate=None)
    before = network.eval()(torch.ones(1, 3, 12, 12)).logits2
    make_delegable(network)
    assert not [one for one in network.modules() if isinstance(one, nn.GroupNorm)]
    torch.testing.assert_close(network(torch.ones(1, 3, 12, 12)).logits2, before, atol=1e-5, rtol=1e-5)
