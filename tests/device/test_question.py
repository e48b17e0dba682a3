"""When a question is asked again, and how long the cloud wants to be left alone."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmony.core.errors import CloudAnswerInvalid, CloudRefused, CloudTimeout, CloudUnreachable, FallbackError
from harmony.device.question import ATTEMPTS, Reply, _retry_after, pause_before_next


def refusal(status: int, retry_after: float | None = None) -> CloudRefused:
    error = CloudRefused("no")
    error.status, error.retry_after = status, retry_after
    return error


@pytest.mark.parametrize("error", [CloudUnreachable("x"), refusal(503), refusal(502), refusal(504), refusal(429)])
def test_pauses_double_with_jitter(error: FallbackError) -> None:
    first, second = ([pause_before_next(error, attempt, 10) or 0 for _ in range(300)] for attempt in (1, 2))
    assert 0.025 <= min(first) < 0.03
    assert 0.07 < max(first) <= 0.075
    assert 0.05 <= min(second) < 0.06
    assert 0.14 < max(second) <= 0.15
    assert pause_before_next(error, ATTEMPTS, 10) is None


@pytest.mark.parametrize(
    "error", [CloudTimeout("x"), CloudAnswerInvalid("x"), refusal(400), refusal(401), refusal(500)]
)
def test_what_is_not_asked_again(error: FallbackError) -> None:
    assert pause_before_next(error, 1, 10) is None


def test_never_before_the_moment_that_was_asked_for_and_never_too_late() -> None:
    pauses = [pause_before_next(refusal(503, 2), 1, 10) or 0 for _ in range(300)]
    assert min(pauses) >= 2.025
    assert max(pauses) <= 2.075
    assert pause_before_next(refusal(503, 2), 1, 2.01) is None
    assert pause_before_next(CloudUnreachable("x"), 1, 0.01) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("7", 7), ("99999", 99999), ("100000", None), ("-1", None), ("1.5", None), ("", None), ("²", None)],
)
def test_seconds(text: str, expected: float | None) -> None:
    assert _retry_after(Reply(503, {"retry-after": text}, b"")) == expected


def test_dates() -> None:
    soon = _retry_after(Reply(503, {"retry-after": formatdate(time.time() + 100, usegmt=True)}, b""))
    assert soon is not None
    assert 95 < soon <= 100
    assert _retry_after(Reply(503, {"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}, b"")) == 0
    assert _retry_after(Reply(503, {"retry-after": "yesterday"}, b"")) is None


@given(st.text())
def test_no_text_is_more_than_no_answer(text: str) -> None:
    found = _retry_after(Reply(503, {"retry-after": text}, b""))
    assert found is None or found >= 0
