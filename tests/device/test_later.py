"""Questions that wait: each one that was taken is delivered once, in order, and no more are kept than there is room."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harmony.core.bundle import DeviceManifest, open_device_bundle
from harmony.core.errors import CircuitOpen, CloudRefused, CloudUnreachable, ConfigError, FallbackError
from harmony.device import CircuitSettings, Device, FallbackClient, LateAnswer, Later

Reply = Callable[..., None]
GOOD = np.array([0.1, 0.2, 0.4, 0.2, 0.1], np.float32)
QUICK = CircuitSettings(failures=2, cool_down_s=0.05, longest_s=0.05)


pytestmark = pytest.mark.usefixtures("either_client")


def feature(number: int) -> Any:
    return np.full((2, 4, 4), number, np.float32)


class Cloud:
    """Refuses until it is well; then says token `value of the feature`. `refuse`: numbers that it does not like."""

    def __init__(
        self, reply: Reply, reply_probabilities: Reply, parse_request: Any, refuse: tuple[int, ...] = ()
    ) -> None:
        self.well, self.refuse = threading.Event(), refuse
        self._reply, self._say, self._parse = reply, reply_probabilities, parse_request
        self.service: Any = None
        self.heard: list[int] = []

    def __call__(self, handler: Any, _: int) -> None:
        if not self.well.is_set():
            self._reply(handler, 500, b"")
            return
        number = round(float(self._parse(self.service.requests[-1])[1].max()))
        self.heard.append(number)
        if number in self.refuse:
            self._reply(handler, 413, b'{"error": "no"}')
        else:
            self._say(handler, np.eye(5, dtype=np.float32)[number % 5])


@pytest.fixture
def cloud(reply: Reply, reply_probabilities: Reply, parse_request: Any) -> Cloud:
    return Cloud(reply, reply_probabilities, parse_request)


def tickets_of(client: FallbackClient, numbers: range) -> list[int | None]:
    found = []
    for number in numbers:
        with pytest.raises(FallbackError) as error:
            client.ask(feature(number))
        found.append(error.value.ticket)
    return found


def test_what_could_not_be_asked_is_answered_when_the_cloud_is_back(
    manifest: DeviceManifest, serve: Any, cloud: Cloud
) -> None:
    late: list[LateAnswer] = []
    with (
        serve(cloud) as cloud.service,
        FallbackClient(
            cloud.service.url, None, manifest=manifest, deadline_s=5, circuit=QUICK, later=Later(late.append)
        ) as client,
    ):
        tickets = tickets_of(client, range(1, 8))
        assert tickets == [1, 2, 3, 4, 5, 6, 7]
        assert not client.flush(0.2)
        assert late == []
        cloud.well.set()
        assert client.flush(20)
        assert client.circuit == "closed"
        assert client.ask(feature(9)).label == 2
    assert [one.ticket for one in late] == tickets
    labels = manifest.classes.label_of_token
    assert [one.answer.label if one.answer else None for one in late] == [labels[number % 5] for number in range(1, 8)]
    assert all(one.error is None and 0 < one.waited_s < 60 for one in late)
    assert cloud.heard == [1, 2, 3, 4, 5, 6, 7, 9]


def test_what_is_refused_for_good_is_told_and_holds_up_nobody(
    manifest: DeviceManifest, serve: Any, cloud: Cloud
) -> None:
    late: list[LateAnswer] = []
    cloud.refuse = (2,)
    later = Later(late.append)
    with (
        serve(cloud) as cloud.service,
        FallbackClient(cloud.service.url, None, manifest=manifest, circuit=QUICK, deadline_s=5, later=later) as client,
    ):
        tickets_of(client, range(1, 4))
        cloud.well.set()
        assert client.flush(20)
        with pytest.raises(CloudRefused, match="413") as refused:
            client.ask(feature(2))
        assert refused.value.ticket is None, "another time would not help"
    assert [type(one.error).__name__ for one in late] == ["NoneType", "CloudRefused", "NoneType"]


@pytest.mark.parametrize("limits", [{"most": 3}, {"most_bytes": 3 * 60}])
def test_no_more_is_kept_than_there_is_room_for(
    limits: dict[str, int], manifest: DeviceManifest, serve: Any, cloud: Cloud
) -> None:
    late: list[LateAnswer] = []
    later = Later(late.append, **limits)
    with (
        serve(cloud) as cloud.service,
        FallbackClient(cloud.service.url, None, manifest=manifest, circuit=QUICK, deadline_s=5, later=later) as client,
    ):
        taken = tickets_of(client, range(1, 9))
        room = len([one for one in taken if one is not None])
        assert taken == [*range(1, room + 1), *[None] * (8 - room)]
        assert 1 <= room <= 5
        assert ("most" not in limits) or room == 3
        cloud.well.set()
        assert client.flush(20)
        cloud.well.clear()
        assert tickets_of(client, range(1, 2)) == [room + 1], "there is room again"
    assert len(late) == room + 1


def test_closing_gives_up_what_waits_and_says_so(manifest: DeviceManifest, serve: Any, cloud: Cloud) -> None:
    late: list[LateAnswer] = []
    later = Later(late.append)
    with serve(cloud) as cloud.service:
        client = FallbackClient(cloud.service.url, None, manifest=manifest, circuit=QUICK, deadline_s=5, later=later)
        with client:
            tickets_of(client, range(3))
    assert [one.ticket for one in late] == [1, 2, 3]
    assert {type(one.error) for one in late} == {CloudUnreachable}
    assert "closed before" in str(late[0].error)


def test_a_callback_that_fails_is_logged_and_ends_nothing(
    manifest: DeviceManifest, serve: Any, cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    late: list[int] = []

    def deliver(answer: LateAnswer) -> None:
        late.append(answer.ticket)
        if answer.ticket == 1:
            raise KeyError("the app's own mistake")

    with (
        caplog.at_level(logging.ERROR),
        serve(cloud) as cloud.service,
        FallbackClient(
            cloud.service.url, None, manifest=manifest, circuit=QUICK, deadline_s=5, later=Later(deliver)
        ) as client,
    ):
        tickets_of(client, range(2))
        cloud.well.set()
        assert client.flush(20)
    assert late == [1, 2]
    assert "could not be delivered" in caplog.text


def test_a_device_tells_the_ticket_of_a_degraded_answer(bundle: Path, serve: Any, cloud: Cloud) -> None:
    late: list[LateAnswer] = []
    image = np.zeros((4, 4, 1), np.uint8)
    later = Later(late.append)
    with (
        serve(cloud) as cloud.service,
        FallbackClient(
            cloud.service.url, None, manifest=open_device_bundle(bundle), circuit=QUICK, deadline_s=5, later=later
        ) as client,
    ):
        answers = [Device.open(bundle, fallback=client).answer(image) for _ in range(4)]
        assert [answer.ticket for answer in answers] == [1, 2, 3, 4]
        assert all(answer.degraded and answer.exit == "exit2" for answer in answers)
        cloud.well.set()
        assert client.flush(20)
    assert [one.ticket for one in late] == [1, 2, 3, 4]


def test_without_a_queue_there_are_no_tickets(manifest: DeviceManifest, serve: Any, cloud: Cloud) -> None:
    with (
        serve(cloud) as cloud.service,
        FallbackClient(cloud.service.url, None, manifest=manifest, circuit=QUICK, deadline_s=5) as client,
    ):
        assert tickets_of(client, range(3)) == [None] * 3
        assert client.flush(0)


def test_an_answer_in_the_foreground_wakes_those_who_wait(manifest: DeviceManifest, serve: Any, cloud: Cloud) -> None:
    """The next try of their own would be a minute away."""
    late: list[LateAnswer] = []
    slow = CircuitSettings(failures=9, cool_down_s=60, longest_s=60)
    later = Later(late.append)
    with (
        serve(cloud) as cloud.service,
        FallbackClient(cloud.service.url, None, manifest=manifest, circuit=slow, deadline_s=5, later=later) as client,
    ):
        tickets_of(client, range(1))
        assert not client.flush(0.3), "it was asked again, failed again, and rests"
        cloud.well.set()
        started = time.monotonic()
        client.ask(feature(1))
        assert client.flush(20)
        assert time.monotonic() - started < 20
    assert [one.error for one in late] == [None]


def test_while_it_is_open_nobody_asks(manifest: DeviceManifest, serve: Any, cloud: Cloud) -> None:
    long = CircuitSettings(failures=2, cool_down_s=60, longest_s=60)
    later = Later(lambda _: None)
    with (
        serve(cloud) as cloud.service,
        FallbackClient(cloud.service.url, None, manifest=manifest, circuit=long, deadline_s=5, later=later) as client,
    ):
        tickets_of(client, range(2))
        client.flush(0.3)
        asked = len(cloud.service.requests)
        assert asked in (2, 3), "the queue may have been quicker than the second question"
        with pytest.raises(CircuitOpen):
            client.ask(feature(1))
        client.flush(0.2)
        assert len(cloud.service.requests) == asked


@pytest.mark.parametrize("limits", [{"most": 0}, {"most_bytes": 0}])
def test_a_queue_without_room(limits: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="without room"):
        Later(lambda _: None, **limits)
