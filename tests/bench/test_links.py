"""Links against values worked out by hand."""

from __future__ import annotations

import pytest

from harmony.bench.links import LINKS, Link, find_link, on_wire
from harmony.core.errors import ConfigError

ROUND = Link(name="round", down_kbit=8_000, up_kbit=800, rtt_ms=100, source="made up: 1 byte/µs down, 0.1 up")


def test_every_segment_carries_its_headers() -> None:
    assert on_wire(0) == 0
    assert on_wire(1) == 53
    assert on_wire(1448) == 1500
    assert on_wire(1449) == 1553


def test_a_warm_exchange_is_one_round_trip_and_the_bytes_both_ways() -> None:
    # up: 948 + 52 = 1000 bytes at 100 kB/s = 10 ms; down: 1448 + 52 = 1500 bytes at 1 MB/s = 1.5 ms
    assert ROUND.exchange_s(948, 1448) == pytest.approx(0.100 + 0.010 + 0.0015)


def test_a_cold_exchange_within_the_first_window_pays_the_handshake_only() -> None:
    warm = ROUND.exchange_s(948, 1448)
    assert ROUND.exchange_s(948, 1448, cold=True) == pytest.approx(warm + 0.100)


def test_a_cold_exchange_stalls_until_the_window_fills_the_pipe() -> None:
    # Down, 1 MB/s, 100 ms: windows of 10 and 20 segments take 15 and 30 ms and stall 85 and 70 ms; a third of 40
    # segments takes 60 ms and would stall 40 ms, but 30 + 35 segments end within it.
    warm = ROUND.exchange_s(0, 65 * 1448)
    assert warm == pytest.approx(0.100 + 65 * 0.0015)
    assert ROUND.exchange_s(0, 65 * 1448, cold=True) == pytest.approx(warm + 0.100 + 0.085 + 0.070)


def test_a_slow_link_never_stalls() -> None:
    # Up, 0.1 MB/s: the first window of 10 segments takes 150 ms, longer than the round trip.
    warm = ROUND.exchange_s(100_000, 0)
    assert ROUND.exchange_s(100_000, 0, cold=True) == pytest.approx(warm + 0.100)


def test_the_published_profiles() -> None:
    table = {name: (link.down_kbit, link.up_kbit, link.rtt_ms) for name, link in LINKS.items()}
    assert table == {
        "wifi": (30_000, 15_000, 2),
        "lte": (12_000, 12_000, 70),
        "4g": (9_000, 9_000, 170),
        "slow-4g": (1_638, 750, 150),
        "3g-fast": (1_600, 768, 150),
        "3g": (1_600, 768, 300),
    }


def test_an_unknown_link_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'5g' is no link \(choose from wifi, lte, 4g"):
        find_link("5g")
