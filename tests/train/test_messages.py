"""What crosses between clients, cloud and aggregator in a running round: every message is looked at."""

from __future__ import annotations

import gc
import types
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from harmony.core.config import TrainConfig, make_config
from harmony.core.data import Dataset
from harmony.train.federation import Client, Federation, federation
from harmony.train.harmony import Harmony
from harmony.train.messages import (
    CutGradient,
    ExtractorGradients,
    Message,
    MessageT,
    Upload,
    Weights,
)

ALL_ON = {"inner_steps": 1, "inner_share": 0.5, "contrast": 0.3}


class Recorder:
    """Carries messages and keeps copies. A type that is not known here is a failure, not a message."""

    def __init__(self) -> None:
        self.seen: list[Message] = []

    def __call__(self, message: MessageT) -> MessageT:
        assert type(message) in get_args(Message)
        self.seen.append(copied(message))
        return message

    def of(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.seen if type(message) is kind]


def copied(message: Any) -> Any:
    fields = message._asdict()
    for name, value in fields.items():
        if isinstance(value, Tensor):
            fields[name] = value.clone()
        elif isinstance(value, dict):
            fields[name] = {key: one.detach().clone() for key, one in value.items()}
    return type(message)(**fields)


def tensors(message: Message) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a message; a field that is neither tensors, nor a number or an architecture, is a failure."""
    for name, value in message._asdict().items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, dict):
            yield from value.items()
        else:
            assert name in {"group", "architecture"}, name


@pytest.fixture(scope="module", params=[None, 1.0], ids=["truth", "randomised"])
def round_of(request: pytest.FixtureRequest, images: Dataset) -> tuple[Federation, Recorder]:
    """Two rounds with every part switched on."""
    config = small(ALL_ON, epsilon=request.param)
    members, recorder = federation(config, images), Recorder()
    method = Harmony(members)
    method.post = recorder
    method.round(0)
    method.round(1)
    return members, recorder


def small(parts: dict[str, Any], epsilon: float | None = None) -> TrainConfig:
    tokens = {} if epsilon is None else {"epsilon": epsilon}
    return make_config(
        {
            "partition": {"kind": "classes", "clients": 4, "classes": 3},
            "architectures": ["resnet-w16-d1", "mobilenet-w8-d1", "resnet-w8-d2", "patch-w8-d1"],
            **{"back_end_width": 8, "rounds": 2, "steps": 2, "batch": 8, "harmony": parts, "tokens": tokens},
        }
    )


def test_every_type_is_sent_and_no_other(round_of: tuple[Federation, Recorder]) -> None:
    _, recorder = round_of
    assert {type(message) for message in recorder.seen} == set(get_args(Message))
    visits = 2 * 2 * 4
    assert len(recorder.of(Upload)) == len(recorder.of(CutGradient)) == len(recorder.of(Weights)) == visits
    assert len(recorder.of(ExtractorGradients)) == 4


def test_no_message_holds_an_input(round_of: tuple[Federation, Recorder]) -> None:
    """Of no tensor is a row as large as an image, and none is still tied to the graph that begins at the images."""
    members, recorder = round_of
    pixels = members.image.height * members.image.width * members.image.channels
    for message in recorder.seen:
        for name, tensor in tensors(message):
            assert tensor[0].numel() != pixels, (type(message), name)
            assert tensor.shape[-3:] != (members.image.channels, members.image.height, members.image.width)
    for upload in recorder.of(Upload):
        assert upload.feature.shape[1:] == members.feature.shape
        assert upload.feature.grad_fn is None


def test_the_only_labels_are_tokens_as_they_are_told(round_of: tuple[Federation, Recorder]) -> None:
    """Whole numbers travel in one field alone. It holds π(label), or what randomised response made of it."""
    members, recorder = round_of
    whole = [
        (type(message), name)
        for message in recorder.seen
        for name, one in tensors(message)
        if not one.is_floating_point()
    ]
    assert set(whole) == {(Upload, "tokens")}
    uploads = iter(recorder.of(Upload))
    labels, truth, told = [], [], []
    for step in range(4):
        for visit in Harmony(members).visits(step, [0, 1, 2, 3]):
            upload = next(uploads)
            inputs, tokens = members.batch(visit.clients, step)
            assert torch.equal(upload.tokens, members.told_tokens(visit.clients, step))
            assert len(upload.feature) == len(inputs)
            labels.append(torch.argsort(torch.from_numpy(members.tokens))[tokens])
            truth.append(tokens)
            told.append(upload.tokens)
    heard, label, token = torch.cat(told), torch.cat(labels), torch.cat(truth)
    assert not torch.equal(label, token), "a permutation that moves nothing would hide nothing"
    if members.told is None:
        assert torch.equal(heard, token)
    else:
        assert 0.5 < float((heard != token).float().mean()) < 0.95  # 1 − e / (e + 9) = 0.77


def test_gradients_have_the_shape_of_what_they_are_gradients_of(round_of: tuple[Federation, Recorder]) -> None:
    members, recorder = round_of
    for upload, answer in zip(recorder.of(Upload), recorder.of(CutGradient), strict=True):
        assert answer.group == upload.group
        assert answer.feature.shape == upload.feature.shape
    shared = Harmony(members).shared
    for message in recorder.of(ExtractorGradients):
        assert {name: one.shape for name, one in message.tensors.items()} == {
            name: shared[name].shape for name in message.tensors
        }
        assert not any(".head." in name for name in message.tensors), "personal heads stay at home"


def test_the_cloud_can_reach_no_image_no_label_and_no_key(images: Dataset) -> None:
    """Whatever hangs on the cloud's object, on what hangs there, and so on, after a round."""
    method = Harmony(federation(small(ALL_ON), images))
    method.round(0)
    found = list(reachable(method.cloud))
    assert any(one is method.back_end for one in found)
    assert not [one for one in found if isinstance(one, (Federation, Dataset, Client, TrainConfig))]
    assert [one for one in reachable(method) if isinstance(one, Federation)], "the walk does find what is there"


def reachable(root: object) -> Iterator[object]:
    """Objects that can be reached without passing through modules, classes or functions' globals."""
    todo, seen = [root], {id(root)}
    while todo:
        one = todo.pop()
        yield one
        for other in gc.get_referents(one):
            if id(other) not in seen and not isinstance(other, (type, types.ModuleType, types.FunctionType)):
                seen.add(id(other))
                todo.append(other)


def test_the_recorder_refuses_what_is_no_message() -> None:
    with pytest.raises(AssertionError):
        Recorder()((torch.zeros(1, 1, 28, 28), torch.tensor([3])))  # type: ignore[type-var]
