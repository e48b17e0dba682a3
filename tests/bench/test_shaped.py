"""Real TCP through a shaped link, where that is allowed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from harmony.bench import shaped
from harmony.bench.link_check import LinksResult, check_link
from harmony.bench.links import Link
from harmony.core.errors import ConfigError

LINK = Link(name="short", down_kbit=50_000, up_kbit=50_000, rtt_ms=20, source="made up")


def _namespaces() -> bool:
    try:
        with shaped.shaped(LINK):
            return True
    except (ConfigError, OSError):
        return False


needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/net/tun").exists() or not _namespaces(), reason="needs root and namespaces"
)


@needs_root
def test_no_answer_is_quicker_than_the_round_trip() -> None:
    """A lower bound that holds however busy the machine is: two ways of 10 ms, and a third for a new connection."""
    kept, new = check_link(LINK, 3, ((1_000, 500, False), (30_000, 500, True)))
    assert kept.measured_s >= 0.020
    assert new.measured_s >= 0.040 + 30_000 * 8 / 50e6
    assert (kept.repeats, kept.predicted_s) == (3, LINK.exchange_s(1_000, 500))
    assert kept.error == pytest.approx((kept.predicted_s - kept.measured_s) / kept.measured_s)


@needs_root
def test_the_command_says_how_it_was_measured() -> None:
    command = [sys.executable, "-m", "harmony.cli.main", "bench", "links", "--link", "wifi", "--repeats", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    result = LinksResult.model_validate_json(done.stdout)
    assert (result.tier, [one.name for one in result.links], len(result.exchanges)) == ("constrained", ["wifi"], 4)


@needs_root
def test_the_ends_see_only_each_other_and_are_gone_afterwards() -> None:
    before = threading.active_count()
    with shaped.shaped(LINK) as pair:
        names = [end.do(lambda: [name for _, name in socket.if_nameindex()]) for end in pair]
        assert names == [["lo", "link0"]] * 2
        with pytest.raises(OSError, match="unreachable"):
            pair.device.do(lambda: socket.create_connection(("192.0.2.1", 9), timeout=1))
    assert threading.active_count() == before


def test_without_privileges_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match=r"real links need root|real links need Linux"), shaped.shaped(LINK):
        pass
