"""The circuit breaker on a clock that only the test moves, and then in front of a real server."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harmony.core.bundle import DeviceManifest, open_device_bundle
from harmony.core.errors import (
    CircuitOpen,
    CloudAnswerInvalid,
    CloudRefused,
    CloudTimeout,
    CloudUnreachable,
    ConfigError,
    FallbackError,
    InvalidInput,
)
from harmony.device import CircuitSettings, Device, FallbackClient
from harmony.device.circuit import Circuit, is_away

SETTINGS = CircuitSettings(failures=3, cool_down_s=2, longest_s=10)
GOOD = np.array([0.1, 0.2, 0.4, 0.2, 0.1], np.float32)
FEATURE = np.random.default_rng(0).normal(size=(2, 4, 4)).astype(np.float32)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def circuit(clock: Clock) -> Circuit:
    """Draws the middle of every range."""
    return Circuit(SETTINGS, "http://cloud", clock=clock, draw=lambda low, high: (low + high) / 2)


def refusal(status: int, retry_after: float | None = None) -> CloudRefused:
    error = CloudRefused(f"answered {status}")
    error.status, error.retry_after = status, retry_after
    return error


def state(circuit: Circuit) -> str:
    return circuit.state


def fail(circuit: Circuit, error: BaseException | None = None, times: int = 1) -> None:
    for _ in range(times):
        error = error or CloudTimeout("late")
        with pytest.raises(type(error)), circuit.call():
            raise error


def succeed(circuit: Circuit) -> None:
    with circuit.call():
        pass


def test_it_opens_after_failures_in_a_row_alone(circuit: Circuit) -> None:
    for _ in range(5):
        fail(circuit, times=2)
        succeed(circuit)
    assert state(circuit) == "closed"
    fail(circuit, times=3)
    assert (circuit.state, circuit.left) == ("open", 2.0)
    with pytest.raises(CircuitOpen, match=r"http://cloud: failed, and is left alone for a while: next try in 2\.0 s"):
        succeed(circuit)


def test_one_question_tries_it_and_closes_it(circuit: Circuit, clock: Clock) -> None:
    fail(circuit, times=3)
    clock.now += 1.999
    with pytest.raises(CircuitOpen):
        succeed(circuit)
    clock.now += 0.001
    assert state(circuit) == "half-open"
    with circuit.call():
        with pytest.raises(CircuitOpen, match="another question is trying it"):
            succeed(circuit)
        assert state(circuit) == "half-open"
    assert state(circuit) == "closed"
    fail(circuit, times=2)
    assert state(circuit) == "closed", "the failures from before count no more"


def test_the_cool_down_doubles_up_to_its_end_and_begins_again(circuit: Circuit, clock: Clock) -> None:
    fail(circuit, times=3)
    waits = []
    for _ in range(5):
        waits.append(circuit.left)
        clock.now += circuit.left
        fail(circuit)
    assert waits == [2, 4, 8, 10, 10]
    clock.now += circuit.left
    succeed(circuit)
    fail(circuit, times=3)
    assert circuit.left == 2


def test_many_cool_downs_do_not_overflow(clock: Clock) -> None:
    circuit = Circuit(CircuitSettings(1, 1, 5), "http://cloud", clock=clock)
    for _ in range(2000):
        fail(circuit)
        assert 0.5 <= circuit.left <= 7.5
        clock.now += circuit.left


def test_a_fleet_does_not_come_back_together(clock: Clock) -> None:
    waits = []
    for _ in range(200):
        circuit = Circuit(SETTINGS, "http://cloud", clock=clock)
        fail(circuit, times=3)
        waits.append(circuit.left)
    assert 1 <= min(waits) < 1.2
    assert 2.8 < max(waits) <= 3
    assert len(set(waits)) == 200


def test_the_clouds_own_word_opens_it_at_once_for_that_long(circuit: Circuit, clock: Clock) -> None:
    fail(circuit, refusal(503, retry_after=30))
    assert circuit.left == pytest.approx(30 * 1.1)
    clock.now += circuit.left
    fail(circuit, refusal(429, retry_after=1e9))
    assert circuit.left == pytest.approx(3600 * 1.1), "for ever is an hour"
    clock.now += circuit.left
    succeed(circuit)
    fail(circuit, times=3)
    assert circuit.left == 2, "what was asked for doubles nothing"


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (CloudUnreachable("x"), True),
        (CloudTimeout("x"), True),
        (CloudAnswerInvalid("x"), True),
        (CircuitOpen("x"), True),
        (refusal(500), True),
        (refusal(503), True),
        (refusal(408), True),
        (refusal(429), True),
        (refusal(400), False),
        (refusal(401), False),
        (refusal(404), False),
        (refusal(413), False),
        (refusal(307), False),
    ],
)
def test_what_counts_as_away(error: FallbackError, away: bool, circuit: Circuit) -> None:
    assert is_away(error) is away
    fail(circuit, error, times=3)
    assert state(circuit) == ("open" if away else "closed")


@pytest.mark.parametrize("error", [InvalidInput("not finite"), KeyboardInterrupt(), ValueError()])
def test_what_says_nothing_of_the_cloud(error: BaseException, circuit: Circuit, clock: Clock) -> None:
    fail(circuit, error, times=9)
    assert state(circuit) == "closed"
    fail(circuit, times=3)
    clock.now += 2
    fail(circuit, error)
    assert state(circuit) == "half-open", "the next question may try"
    succeed(circuit)
    assert state(circuit) == "closed"


def test_old_news_changes_nothing(circuit: Circuit, clock: Clock) -> None:
    """Questions that began before it opened end while it is open, or tried, or closed again."""
    late = [circuit.call() for _ in range(3)]
    for call in late:
        call.__enter__()
    fail(circuit, times=3)
    late[0].__exit__(None, None, None)
    assert state(circuit) == "open"
    clock.now += 2
    with circuit.call():
        assert not late[1].__exit__(CloudTimeout, CloudTimeout("late"), None)
        assert state(circuit) == "half-open"
    assert not late[2].__exit__(CloudTimeout, CloudTimeout("late"), None)
    fail(circuit, times=2)
    assert state(circuit) == "closed", "old failures are not counted"


def test_threads_cannot_try_it_together(clock: Clock) -> None:
    circuit = Circuit(CircuitSettings(1, 1, 1), "http://cloud", clock=clock, draw=lambda low, high: low)
    fail(circuit)
    clock.now += 5
    admitted, start = [], threading.Barrier(16)
    leave = threading.Event()

    def work() -> None:
        start.wait()
        try:
            with circuit.call():
                admitted.append(1)
                leave.wait(10)
        except CircuitOpen:
            admitted.append(0)
        if len(admitted) >= 16:
            leave.set()

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    while len(admitted) < 16:
        pass
    leave.set()
    for thread in threads:
        thread.join()
    assert sum(admitted) == 1


@pytest.mark.parametrize(
    "change",
    [{"failures": 0}, {"cool_down_s": 0}, {"cool_down_s": float("nan")}, {"longest_s": 0.5}, {"longest_s": 1e9}],
)
def test_settings_that_cannot_be_meant(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="circuit: CircuitSettings"):
        CircuitSettings(**change)


@pytest.fixture
def manifest(bundle: Path) -> DeviceManifest:
    return open_device_bundle(bundle)


def test_a_cloud_that_fails_is_left_alone_and_found_again(
    bundle: Path,
    manifest: DeviceManifest,
    serve: Any,
    reply: Callable[..., None],
    reply_probabilities: Callable[..., None],
) -> None:
    """Three answers of 500, then silence from our side, then one question that finds it well."""
    well = threading.Event()

    def behave(handler: Any, _: int) -> None:
        reply_probabilities(handler, GOOD) if well.is_set() else reply(handler, 500, b"")

    image = np.random.default_rng(0).integers(0, 256, (4, 4, 1), dtype=np.uint8)
    settings = CircuitSettings(failures=3, cool_down_s=0.2, longest_s=0.2)
    with serve(behave) as service, FallbackClient(service.url, None, manifest=manifest, circuit=settings) as client:
        device = Device.open(bundle, fallback=client)
        reasons = [(device.answer(image).reason or "").split(":")[0] for _ in range(6)]
        assert reasons == ["CloudRefused"] * 3 + ["CircuitOpen"] * 3
        assert len(service.requests) == 3
        assert client.circuit == "open"
        well.set()
        while client.circuit == "open":
            threading.Event().wait(0.01)
        answer = device.answer(image)
        assert (answer.exit, answer.degraded, client.circuit) == ("cloud", False, "closed")


def test_a_retry_after_holds_for_every_question(
    manifest: DeviceManifest, serve: Any, reply: Callable[..., None]
) -> None:
    with (
        serve(lambda handler, _: reply(handler, 429, b'{"error": "slow down"}', Retry_After="30")) as service,
        FallbackClient(service.url, None, manifest=manifest) as client,
    ):
        with pytest.raises(CloudRefused, match="429: slow down") as refused:
            client.ask(FEATURE)
        assert (refused.value.status, refused.value.retry_after) == (429, 30)
        with pytest.raises(CircuitOpen, match=r"next try in 3\d\.\d s"):
            client.ask(FEATURE)
    assert len(service.requests) == 1
