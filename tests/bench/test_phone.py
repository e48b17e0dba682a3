"""What can be known of a phone without one: what is said where there is none, and how its words are read."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harmony.bench import phone
from harmony.bench.phone import Condition, Phone, parse_condition, parse_times
from harmony.core.errors import ConfigError, EngineError, EngineUnavailable


def test_without_adb_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineUnavailable, match="adb is not installed"):
        Phone.find()


@pytest.mark.skipif(shutil.which("adb") is None, reason="needs adb")
def test_without_a_phone_it_is_said() -> None:
    with pytest.raises(EngineUnavailable, match="no phone no-such-phone can be used"):
        Phone.find("no-such-phone")


def test_a_serial_is_never_taken_for_an_option() -> None:
    for serial in ("-s", "", "a b", "x;reboot"):
        with pytest.raises(ConfigError, match="is no serial"):
            Phone.find(serial)


def test_states_of_phones_are_read_from_what_adb_prints() -> None:
    printed = (
        "List of devices attached\n"
        "1A2B       device usb:1-2 product:sargo model:Pixel_3a device:sargo transport_id:1\n"
        "10.0.0.2:5555 offline\n"
        "9C unauthorized usb:1-3\n\n"
    )
    assert [(name, state) for name, state, _ in phone._DEVICE.findall(printed)] == [
        ("1A2B", "device"), ("10.0.0.2:5555", "offline"), ("9C", "unauthorized"),
    ]  # fmt: skip


def test_times_are_the_last_line() -> None:
    times = {"microseconds": {"exit1": {"images": 1, "total": 90.5}}, "peak_kib": 7000}
    assert (
        parse_times('WARNING: linker\n{"microseconds":{"exit1":{"images":1,"total":90.5}},"peak_kib":7000}\n', "x")
        == times
    )
    for printed in ("", "Killed\n", "[]", '{"microseconds": 3, "peak_kib": 1}', '{"peak_kib": 1}'):
        with pytest.raises(EngineError, match="the phone printed no times"):
            parse_times(printed, "x")


def test_heat_and_charge() -> None:
    battery = "Current Battery Service state:\n  AC powered: false\n  level: 87\n  scale: 100\n"
    assert parse_condition(battery, "31000\n42500\n-274000\n0\n99\n") == Condition(battery=87, celsius=42.5)
    assert parse_condition("nothing", "cat: no such file") == Condition(battery=None, celsius=None)


def test_the_command_says_it_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "harmony.cli.main", "bench", "phone", "nowhere", "--runner", "r", "--images", "i"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": str(tmp_path), "HOME": str(tmp_path)},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "harmony: EngineUnavailable: --adb: adb is not installed (apt install adb)\n"
