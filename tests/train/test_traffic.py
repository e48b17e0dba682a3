"""Bytes on a client's link: the arithmetic says what the messages weigh."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harmony.core.config import TrainConfig
from harmony.core.data import Dataset
from harmony.train.federation import federation
from harmony.train.harmony import Harmony
from harmony.train.messages import CutGradient, ExtractorGradients, MessageT, Upload, Weights
from harmony.train.traffic import traffic

Settings = Callable[..., TrainConfig]


@pytest.mark.parametrize("simulate", [False, True])
def test_harmony_is_counted_as_its_messages_weigh(rival_config: Settings, images: Dataset, simulate: bool) -> None:
    """Every client gets the slice of its visit and its part of the cut's gradient, and sends its part of the rest."""
    config = rival_config("harmony", steps=40, harmony={"simulate": simulate, "personalize_epochs": 0})
    members = federation(config, images)
    method, here = Harmony(members), len(members.clients) // len(members.groups)
    sent = got = 0

    def weigh(message: MessageT) -> MessageT:
        nonlocal sent, got
        if isinstance(message, Weights):  # one message stands for all clients of the visit
            weights = here * sum(one.numel() * 4 for one in message.tensors.values())
            got, sent = got + weights, sent + weights
        elif isinstance(message, Upload):
            sent += message.feature.numel() * 4 + message.tokens.numel() * 4
        elif isinstance(message, CutGradient):
            got += message.feature.numel() * 4
        else:
            assert isinstance(message, ExtractorGradients)
        return message

    method.post = weigh
    method.round(0)
    expected = traffic(members)
    close = 0.05 if simulate else 1e-9  # simulated architectures are drawn, the arithmetic is of their mean
    assert sent / len(members.clients) == pytest.approx(expected.sent, rel=close)
    assert got / len(members.clients) == pytest.approx(expected.got, rel=close)


def test_rivals_share_what_they_say(rival_config: Settings, images: Dataset) -> None:
    bill = {
        name: traffic(federation(rival_config(name), images))
        for name in ("local", "lg_fedavg", "heterofl", "splitgp", "fedproto", "fedtgp", "fedgh")
    }
    assert bill["local"].sent == bill["local"].got == 0
    assert 0 < bill["fedproto"].sent < bill["fedproto"].got < bill["lg_fedavg"].got < bill["heterofl"].got
    assert bill["fedproto"] == bill["fedtgp"]
    assert bill["fedgh"].got == bill["fedproto"].got + 4 * images.classes  # the biases
    assert bill["splitgp"].sent > bill["splitgp"].got  # tokens
