"""Super-networks: a slice is the architecture itself, and learns through it."""

from __future__ import annotations

import pytest
import torch

from harmony.core.models import FAMILIES, FrontEnd, feature_spec
from harmony.core.spec import Architecture, ImageSpec
from harmony.train.supernet import largest, look, skeleton

IMAGE = ImageSpec(height=12, width=10, channels=1, mean=(0.5,), std=(0.5,))
FEATURE = feature_spec(IMAGE)


def super_parameters(architecture: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    network = FrontEnd(Architecture.parse(architecture), IMAGE, FEATURE, outputs=4, gate=4)
    return {name: value.detach().clone().requires_grad_() for name, value in network.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_slice_runs_like_the_architecture_with_the_sliced_weights(family: str) -> None:
    parameters = super_parameters(f"{family}-w24-d2")
    small = Architecture.parse(f"{family}-w16-d1")
    trunk = skeleton(small, IMAGE, FEATURE, 4)
    views = look(trunk, parameters, torch.randn(3, 1, 12, 10, generator=torch.Generator().manual_seed(0)))
    alone = FrontEnd(small, IMAGE, FEATURE, outputs=4, gate=4)
    alone.load_state_dict({name: value.detach() for name, value in trunk.slices(parameters).items()})
    out = alone(torch.randn(3, 1, 12, 10, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(views.feature, out.feature)
    assert torch.equal(alone.exit1.head(views.embed1), out.logits1)
    assert torch.equal(alone.exit2.head(views.embed2), out.logits2)


def test_gradients_reach_exactly_the_slice() -> None:
    parameters = super_parameters("resnet-w24-d2")
    views = look(
        skeleton(Architecture.parse("resnet-w16-d1"), IMAGE, FEATURE, 4), parameters, torch.randn(2, 1, 12, 10)
    )
    views.feature.square().sum().backward()  # type: ignore[no-untyped-call]
    weight = parameters["stage1.0.second.weight"].grad
    assert weight is not None
    assert weight[:16, :16].abs().sum() > 0
    assert not weight[16:].any()
    assert not weight[:, 16:].any()
    assert parameters["stage1.1.second.weight"].grad is None


def test_largest_contains_every_architecture_of_a_family() -> None:
    names = ["resnet-w16-d3", "resnet-w32-d1", "mobilenet-w8-d1"]
    grown = largest(map(Architecture.parse, names))
    assert {family: str(one) for family, one in grown.items()} == {
        "resnet": "resnet-w32-d3",
        "mobilenet": "mobilenet-w8-d1",
    }
