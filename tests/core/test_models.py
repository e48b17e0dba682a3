"""The families: shapes, slices, life in every weight, and only operators that every engine knows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from harmony.core.errors import ConfigError
from harmony.core.models import FAMILIES, BackEnd, FrontEnd, feature_spec
from harmony.core.models.blocks import GROUP, norm
from harmony.core.spec import FAMILY_NAMES, Architecture, FeatureSpec, ImageSpec

SIZES = [
    (28, 28, 1),
    (32, 32, 3),
    (33, 31, 3),
    (64, 64, 3),
    (224, 224, 3),
    (128, 9, 1),
    (1, 50, 6),
    (1, 1, 1),
    (2, 3, 1),
]
SMALL = [(28, 28, 1), (33, 31, 3), (1, 50, 6)]
MODULES = {nn.Conv2d, nn.GroupNorm, nn.ReLU, nn.Linear, nn.Sequential}
OPERATORS = {"conv2d", "group_norm", "relu", "linear", "mean", "flatten", "add"}
OF_ATTENTION = {"bmm", "reshape", "softmax", "transpose"}


def image_spec(height: int, width: int, channels: int) -> ImageSpec:
    return ImageSpec(height=height, width=width, channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)


def front_end(architecture: str, size: tuple[int, int, int], gate: int | None = 10, seed: int = 0) -> FrontEnd:
    torch.manual_seed(seed)
    image = image_spec(*size)
    return FrontEnd(Architecture.parse(architecture), image, feature_spec(image), outputs=10, gate=gate)


def images(n: int, size: tuple[int, int, int]) -> Tensor:
    height, width, channels = size
    return torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(1))


def outputs(network: FrontEnd, batch: Tensor) -> list[Tensor]:
    return [one for one in network(batch) if one is not None]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_front_end_ends_in_the_cut(family: str, size: tuple[int, int, int]) -> None:
    cut = feature_spec(image_spec(*size))
    back_end = BackEnd(cut, width=8, tokens=7)
    for width, depth in itertools.product((8, 16, 40), (1, 3)):
        network = front_end(f"{family}-w{width}-d{depth}", size)
        found = network(images(2, size))
        assert [tuple(one.shape) for one in found] == [(2, 10), (2, 10), (2, *cut.shape), (2, 10), (2, 10)]
        assert all(one.isfinite().all() for one in found)
        hidden = network.lower(images(2, size))
        assert hidden.shape[1] == width
        assert max(hidden.shape[2:]) <= 18
        assert torch.equal(network.upper(hidden), found.feature)
        assert back_end(found.feature).shape == (2, 7)
        assert back_end.embed(found.feature).shape == (2, 16)


@pytest.mark.parametrize(
    ("size", "cut"), [((28, 28, 1), (7, 7)), ((32, 32, 3), (8, 8)), ((224, 224, 3), (7, 7)), ((128, 9, 1), (8, 1))]
)
def test_the_cut_of_usual_images(size: tuple[int, int, int], cut: tuple[int, int]) -> None:
    assert feature_spec(image_spec(*size)).shape == (32, *cut)


def test_a_front_end_without_gates_says_none() -> None:
    found = front_end("resnet-w8-d1", (28, 28, 1), gate=None)(images(1, (28, 28, 1)))
    assert found.gate1 is None
    assert found.gate2 is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("depth", [1, 2])
@torch.no_grad()
def test_a_leading_slice_of_a_wide_front_end_is_a_front_end(family: str, depth: int) -> None:
    """With weights only in the leading slices, the wide network computes what the narrow one does, and zeros beside."""
    size = (20, 24, 3)
    wide, narrow = front_end(f"{family}-w24-d{depth}", size), front_end(f"{family}-w8-d{depth}", size, seed=2)
    for parameter in wide.parameters():
        parameter.normal_()
    of_wide = dict(wide.named_parameters())
    assert set(of_wide) == set(dict(narrow.named_parameters()))
    for name, parameter in narrow.named_parameters():
        leading = tuple(slice(0, side) for side in parameter.shape)
        kept = of_wide[name][leading].clone()
        assert kept.shape == parameter.shape
        parameter.copy_(kept)
        of_wide[name].zero_()
        of_wide[name][leading] = kept
    batch = images(3, size)
    for mine, theirs in zip(outputs(narrow, batch), outputs(wide, batch), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    hidden = wide.lower(batch)
    torch.testing.assert_close(hidden[:, :8], narrow.lower(batch), rtol=1e-4, atol=1e-4)
    assert (hidden[:, 8:] == 0).all()


@pytest.mark.parametrize("channels", [1, 4, 12, 100])
def test_a_width_that_no_group_fits_is_a_config_error(channels: int) -> None:
    with pytest.raises(ConfigError, match=rf"a width of {channels} channels \(choose a multiple of 8\)"):
        norm(channels)
    with pytest.raises(ConfigError, match="multiple of 8"):
        BackEnd(FeatureSpec(channels=32, height=2, width=2), width=channels, tokens=3)
    with pytest.raises(ConfigError, match="multiple of 8"):
        cut = feature_spec(image_spec(28, 28, 1), channels)
        FrontEnd(Architecture.parse("resnet-w8-d1"), image_spec(28, 28, 1), cut, outputs=2, gate=None)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_norm_has_groups_of_the_same_size(family: str) -> None:
    norms = [one for one in front_end(f"{family}-w24-d2", (28, 28, 1)).modules() if isinstance(one, nn.GroupNorm)]
    assert len(norms) > 8
    assert {one.num_channels // one.num_groups for one in norms} == {GROUP}


@pytest.mark.parametrize("size", SMALL, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_other_images_give_other_answers_and_every_weight_learns(family: str, size: tuple[int, int, int]) -> None:
    network = front_end(f"{family}-w16-d2", size)
    back_end = BackEnd(feature_spec(image_spec(*size)), width=8, tokens=7)
    found = outputs(network, images(8, size))
    tokens = back_end(found[2])
    for one in (*found, tokens):
        assert one.flatten(1).std(dim=0).max() > 1e-3, "the same answer to everything"
    loss = sum((one * torch.randn_like(one)).mean() for one in (*found, tokens))
    assert isinstance(loss, Tensor)
    parameters = dict([*network.named_parameters(prefix="front"), *back_end.named_parameters(prefix="back")])
    for name, gradient in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 0, name


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_sample_is_answered_alike_alone_and_in_a_batch(family: str) -> None:
    size = (28, 28, 1)
    network, batch = front_end(f"{family}-w16-d1", size).train(), images(5, size)
    for whole, alone in zip(outputs(network, batch), outputs(network, batch[3:4]), strict=True):
        torch.testing.assert_close(whole[3:4], alone, rtol=1e-4, atol=1e-5)
    for trained, evaluated in zip(outputs(network, batch), outputs(network.eval(), batch), strict=True):
        assert torch.equal(trained, evaluated), "no state, and no randomness, that differs between training and use"


def test_networks_keep_no_state_beside_their_parameters() -> None:
    for architecture in (f"{family}-w8-d1" for family in FAMILIES):
        assert not list(front_end(architecture, (28, 28, 1)).buffers())
    assert not list(BackEnd(FeatureSpec(channels=32, height=2, width=2), width=8, tokens=3).buffers())


def leaves(network: nn.Module) -> Iterator[nn.Module]:
    return (one for one in network.modules() if not list(one.children()))


def operators(network: nn.Module, example: Tensor) -> set[str]:
    graph = torch.export.export(network, (example,)).graph
    return {str(node.target).split(".")[1] for node in graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("family", FAMILIES)
def test_only_operators_that_export_quantise_and_train_on_a_device(family: str) -> None:
    """No max or average pooling (wrong or missing backward on devices), no BatchNorm, no SiLU, no dropout."""
    network = front_end(f"{family}-w8-d2", (28, 28, 1)).eval()
    assert {type(one) for one in leaves(network)} <= MODULES
    more = OF_ATTENTION if family == "patch" else set()
    assert operators(network, images(1, (28, 28, 1))) <= OPERATORS | more


def test_the_back_end_exports_too() -> None:
    network = BackEnd(FeatureSpec(channels=32, height=7, width=7), width=8, tokens=10).eval()
    assert {type(one) for one in leaves(network)} <= MODULES
    assert operators(network, torch.randn(1, 32, 7, 7)) <= OPERATORS


def test_the_families_are_those_that_core_names_without_torch() -> None:
    assert tuple(FAMILIES) == FAMILY_NAMES


def test_an_unknown_family_is_a_config_error_that_names_the_known() -> None:
    image = image_spec(28, 28, 1)
    other = Architecture(family="vgg", width=16, depth=1)
    with pytest.raises(
        ConfigError, match=r"unknown family 'vgg' in 'vgg-w16-d1' \(choose one of resnet, mobilenet, patch\)"
    ):
        FrontEnd(other, image, feature_spec(image), outputs=2, gate=None)


@pytest.mark.parametrize("family", FAMILIES)
def test_width_and_depth_cost_what_they_should(family: str) -> None:
    def size(width: int, depth: int) -> int:
        return sum(math.prod(one.shape) for one in front_end(f"{family}-w{width}-d{depth}", (28, 28, 1)).parameters())

    assert size(8, 1) < size(16, 1) < size(16, 2) < size(32, 2)
