"""Templates: filled in they are what lowering itself gives, and none is made where that cannot be known."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from harmony.export.template import CAPACITY, FIRST, Span, make_template, number


def _numbered(*shapes: tuple[int, ...]) -> nn.ParameterList:
    network = nn.ParameterList([nn.Parameter(torch.zeros(shape)) for shape in shapes])
    assert number(network)
    return network


def _bytes(network: nn.Module) -> list[bytes]:
    return [one.detach().numpy().tobytes() for one in network.parameters()]


def test_numbers_are_distinct_and_none_is_a_likely_weight() -> None:
    values = torch.cat([one.reshape(-1) for one in _numbered((3, 4), (5,)).parameters()])
    assert len(set(values.tolist())) == 17
    assert bool((values >= 2.0**100).all())


def test_weights_go_where_their_numbers_stood_whatever_the_order_and_alignment() -> None:
    network = _numbered((2, 3), (4,))
    first, second = _bytes(network)
    turned = np.frombuffer(first, "<f4").reshape(2, 3).T.tobytes()
    programs = {"a": b"x" + turned + b"tail", "b": b"head" + second}
    template = make_template(programs, [Span("a", 1, 24), Span("b", 4, 16)], 10)
    assert template is not None
    weights = nn.ParameterList([nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.randn(4))])
    filled = template.fill(weights)
    assert filled["a"] == b"x" + weights[0].detach().numpy().T.tobytes() + b"tail"
    assert filled["b"] == b"head" + weights[1].detach().numpy().tobytes()
    assert template.programs == programs


def test_a_key_follows_the_bytes_that_it_is_the_hash_of() -> None:
    (data,) = _bytes(_numbered((4,)))
    key = hashlib.sha256(data).hexdigest().encode()
    template = make_template({"p": data + key}, [Span("p", 0, 16)], 4, [Span("p", 0, 16)])
    assert template is not None
    filled = template.fill(nn.ParameterList([nn.Parameter(torch.ones(4))]))["p"]
    assert filled[16:] == hashlib.sha256(filled[:16]).hexdigest().encode()


@pytest.mark.parametrize("damage", ["missing", "twice", "scaled"])
def test_no_template_unless_every_number_turns_up_once(damage: str) -> None:
    (data,) = _bytes(_numbered((4,)))
    scaled = (np.frombuffer(data, "<f4") * np.float32(0.5)).tobytes()
    program = {"missing": data[4:] + bytes(4), "twice": data + data, "scaled": scaled}[damage]
    assert make_template({"p": program}, [Span("p", 0, len(program))], 4) is None


def test_a_network_too_large_to_number_is_left_alone() -> None:
    network = nn.ParameterList([nn.Parameter(torch.zeros(CAPACITY + 1))])
    assert not number(network)
    assert float(network[0].detach().abs().max()) == 0


def test_the_first_number_is_two_to_the_hundred() -> None:
    assert np.array([FIRST], "<u4").view("<f4")[0] == 2.0**100
