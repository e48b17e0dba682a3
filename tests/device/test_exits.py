"""The service is told where samples were answered: each of them once, however often a question has to be asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harmony.core.bundle import DeviceManifest, open_device_bundle
from harmony.core.errors import CloudAnswerInvalid, CloudRefused, CloudUnreachable, FallbackError
from harmony.device import CircuitSettings, Device, FallbackClient, LateAnswer, Later

Reply = Callable[..., None]
GOOD = np.array([0.1, 0.2, 0.4, 0.2, 0.1], np.float32)
FEATURE = np.zeros((2, 4, 4), np.float32)


pytestmark = pytest.mark.usefixtures("either_client")


def told(service: Any) -> list[str | None]:
    """The header of every request, None without it."""
    return [request["headers"].get("harmony-exits") for request in service.requests]


def test_counts_go_along_once(manifest: DeviceManifest, serve: Any, reply_probabilities: Reply) -> None:
    with (
        serve(lambda handler, _: reply_probabilities(handler, GOOD)) as service,
        FallbackClient(service.url, None, manifest=manifest) as client,
    ):
        client.ask(FEATURE)
        for exit_ in ("exit1", "exit2", "exit1"):
            client.answered(exit_)
        client.ask(FEATURE)
        client.ask(FEATURE)
        client.answered("exit2")
        client.ask(FEATURE)
    assert told(service) == [None, "2,1", None, "0,1"]


def test_a_count_that_is_larger_than_a_service_takes_is_told_in_parts(
    manifest: DeviceManifest, serve: Any, reply_probabilities: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harmony.device.question._MOST_TOLD", 2)
    with (
        serve(lambda handler, _: reply_probabilities(handler, GOOD)) as service,
        FallbackClient(service.url, None, manifest=manifest) as client,
    ):
        for _ in range(5):
            client.answered("exit1")
        for _ in range(4):
            client.ask(FEATURE)
    assert told(service) == ["2,0", "2,0", "1,0", None]


@pytest.mark.parametrize(
    ("fault", "error"), [("refused", CloudRefused), ("dies", CloudUnreachable), ("nonsense", CloudAnswerInvalid)]
)
def test_what_was_not_answered_is_told_again(
    fault: str,
    error: type[FallbackError],
    manifest: DeviceManifest,
    serve: Any,
    reply: Reply,
    reply_probabilities: Reply,
) -> None:
    ill = True

    def behave(handler: Any, _: int) -> None:
        if not ill:
            reply_probabilities(handler, GOOD)
        elif fault == "dies":
            handler.connection.close()
            handler.close_connection = True
        else:
            reply(handler, 400 if fault == "refused" else 200, b"{}")

    with serve(behave) as service, FallbackClient(service.url, None, manifest=manifest, deadline_s=20) as client:
        client.answered("exit1")
        with pytest.raises(error):
            client.ask(FEATURE)
        ill = False
        client.answered("exit2")
        client.ask(FEATURE)
        client.ask(FEATURE)
    assert set(told(service)[:-2]) == {"1,0"}, "every attempt of the first question tells the same"
    assert told(service)[-2:] == ["1,1", None]


def test_a_device_counts_its_own_answers(
    bundle: Path, make_bundle: Callable[..., Path], tmp_path: Path, serve: Any, reply_probabilities: Reply
) -> None:
    """Three devices of one client: one leaves at exit 1, one at exit 2, one asks."""
    image = np.random.default_rng(0).integers(0, 256, (4, 4, 1), dtype=np.uint8)
    thresholds = ((-1e9, -1e9), (1e9, -1e9), (1e9, 1e9))
    made = [make_bundle(tmp_path / str(number), thresholds=pair) for number, pair in enumerate(thresholds)]
    with (
        serve(lambda handler, _: reply_probabilities(handler, GOOD)) as service,
        FallbackClient(service.url, None, manifest=open_device_bundle(bundle)) as client,
    ):
        first, second, asking = (Device.open(one, fallback=client) for one in made)
        exits = [device.answer(image).exit for device in (first, first, second, asking, asking, first, asking)]
    assert exits == ["exit1", "exit1", "exit2", "cloud", "cloud", "exit1", "cloud"]
    assert told(service) == ["2,1", None, "1,0"]


def test_an_answer_in_the_clouds_place_counts_unless_the_cloud_is_still_asked(
    bundle: Path, manifest: DeviceManifest, serve: Any, reply: Reply, reply_probabilities: Reply
) -> None:
    image = np.zeros((4, 4, 1), np.uint8)
    ill = True

    def behave(handler: Any, _: int) -> None:
        if ill:
            reply(handler, 500, b"{}")
        else:
            reply_probabilities(handler, GOOD)

    for later, expected in ((None, "0,1"), (Later(deliver=_forget), None)):
        ill, quick = True, CircuitSettings(cool_down_s=0.01, longest_s=0.02)
        with (
            serve(behave) as service,
            FallbackClient(service.url, None, manifest=manifest, later=later, circuit=quick) as client,
        ):
            device = Device.open(bundle, fallback=client)
            assert device.answer(image).degraded
            ill = False
            assert client.flush(20)
            assert device.answer(image).exit == "cloud"
        assert told(service)[-1] == expected


def _forget(_: LateAnswer) -> None:
    """Nobody waits for it here."""
