"""The contracts of shape and meaning refuse what cannot be meant."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from harmony.core.errors import ConfigError, ContractMismatch
from harmony.core.spec import FAMILY_NAMES, Architecture, ClassMap, FeatureSpec, ImageSpec

IMAGE: dict[str, Any] = {"height": 28, "width": 20, "channels": 2, "mean": (0.1, 0.2), "std": (1.0, 2.0)}


def test_contracts_cannot_be_changed_and_say_what_they_are() -> None:
    image = ImageSpec(**IMAGE)
    assert str(image) == "28x20x2 uint8"
    assert ImageSpec.model_validate_json(image.model_dump_json()) == image
    with pytest.raises(ValidationError, match="frozen"):
        image.height = 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"height": 0}, "greater than or equal to 1"),
        ({"width": 5000}, "less than or equal to 4096"),
        ({"mean": (0.1,)}, "one value for each of 2 channels"),
        ({"std": (1.0, 2.0, 3.0)}, "one value for each of 2 channels"),
        ({"std": (1.0, 0.0)}, "greater than 0"),
        ({"std": (1.0, float("inf"))}, "finite"),
        ({"mean": (float("nan"), 0)}, "finite"),
        ({"std": (1.0, 1e-300)}, "scale an image in float32"),
        ({"mean": (1e300, 0)}, "scale an image in float32"),
        ({"dtype": "int8"}, "uint8"),
        ({"depth": 3}, "Extra inputs"),
    ],
)
def test_no_image_spec_that_cannot_scale(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ImageSpec(**IMAGE | change)


def test_another_cut_is_a_mismatch_that_names_both_sides() -> None:
    mine = FeatureSpec(channels=32, height=7, width=5)
    mine.require_same(FeatureSpec(channels=32, height=7, width=5), mine="a", theirs="b")
    assert mine.shape == (32, 7, 5)
    with pytest.raises(ContractMismatch, match=r"the device has 32x7x5-float32, the cloud has 32x5x7-float32"):
        mine.require_same(FeatureSpec(channels=32, height=5, width=7), mine="the device", theirs="the cloud")


@given(tokens=st.permutations(range(7)), own=st.sets(st.integers(0, 6), min_size=1))
def test_tokens_and_labels_are_inverse(tokens: list[int], own: set[int]) -> None:
    classes = ClassMap(names=tuple("abcdefg"), own=tuple(sorted(own)), tokens=tuple(tokens))
    assert classes.label_of_token[np.asarray(tokens)].tolist() == list(range(7))
    assert classes.label_of_token[classes.own_tokens].tolist() == sorted(own)


@pytest.mark.parametrize(
    ("names", "own", "tokens", "said"),
    [
        (("a",), (0,), (0,), "at least 2"),
        (("a", "b"), (), (0, 1), "at least 1"),
        (("a", "b"), (1, 0), (0, 1), "ascending"),
        (("a", "b"), (1, 1), (0, 1), "ascending"),
        (("a", "b"), (2,), (0, 1), "ascending"),
        (("a", "b"), (-1,), (0, 1), "ascending"),
        (("a", "b"), (0,), (0, 0), "permutation"),
        (("a", "b"), (0,), (0,), "permutation"),
        (("a", "b"), (0,), (1, 2), "permutation"),
    ],
)
def test_a_class_map_is_consistent(names: Any, own: Any, tokens: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ClassMap(names=names, own=own, tokens=tokens)


@given(family=st.sampled_from(FAMILY_NAMES), width=st.integers(1, 128), depth=st.integers(1, 16))
def test_an_architecture_is_read_as_it_is_written(family: str, width: int, depth: int) -> None:
    one = Architecture(family=family, width=8 * width, depth=depth)
    assert Architecture.parse(f" {one} ") == one


@pytest.mark.parametrize(
    "text",
    [
        "",
        "resnet",
        "resnet-w16",
        "resnet-w16-d1-x",
        "ResNet-w16-d1",
        "resnet-w-16-d1",
        "resnet-w١٦-d1",
        "resnet-w16-d1\nx",
    ],
)
def test_what_is_no_architecture_says_how_one_is_written(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not an architecture.*resnet-w16-d2"):
        Architecture.parse(text)


@pytest.mark.parametrize(
    "text", ["resnet-w12-d1", "resnet-w0-d1", "resnet-w2048-d1", "resnet-w16-d0", "resnet-w16-d17"]
)
def test_an_architecture_out_of_range_says_the_range(text: str) -> None:
    with pytest.raises(ConfigError, match=r"multiple of 8 from 8 to 1024; depth: 1 to 16"):
        Architecture.parse(text)


def test_an_unknown_family_names_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown family 'vgg' in 'vgg-w16-d1' \(choose one of resnet, mobilenet, patch\)"
    ):
        Architecture.parse("vgg-w16-d1")
    assert Architecture(family="vgg", width=16, depth=1).family == "vgg", "a manifest of another version can be read"


def test_the_contracts_need_no_torch() -> None:
    rooms = "spec, scores, wire, sealed, storage, tensors, bundle, checkpoint, config, preprocess, mix, partition"
    code = f"import sys\nfrom harmony.core import {rooms}\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
