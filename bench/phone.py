"""A real phone over adb: the runner and a bundle are pushed, run there, and its JSON, heat and charge are read back.

Nothing is installed and nothing stays: everything lies in one folder under /data/local/tmp, which is removed at the
end. The runner is `harmony-run` for Android, built with ExecuTorch's own Android build (docs/native.md). What is read
is judged: whatever a phone prints that is not the expected JSON is an EngineError.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from harmony.bench.results import Host, Precision, Versioned
from harmony.core.bundle import open_device_bundle
from harmony.core.errors import ConfigError, EngineError, EngineUnavailable
from harmony.core.sealed import TAR
from harmony.core.spec import Frozen
from harmony.device.native_build import PROGRAM

PLACE = "/data/local/tmp/harmony-bench"
_LONGEST_S = 600
_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_DEVICE = re.compile(r"^(\S+)\s+(device|unauthorized|offline|recovery|sideload)\b(.*)$", re.MULTILINE)


class Condition(Frozen):
    """How the phone was. battery: percent; celsius: the hottest thermal zone. None where it does not say."""

    battery: Annotated[int, Field(ge=0, le=100)] | None
    celsius: float | None


class PhoneRun(Frozen):
    """One bundle on one phone. times: microseconds by where images left, as `harmony-run --time` prints them."""

    serial: str
    model: str
    bundle: str
    precision: Precision
    times: dict[str, Any]
    peak_kib: Annotated[int, Field(ge=0)]
    before: Condition
    after: Condition


class PhoneResult(Versioned):
    """What `harmony bench phone --json` prints. regime: images follow each other without a pause; host: which computer
    asked; nothing of it was measured there."""

    FORMAT: ClassVar[str] = "harmony-bench-phone"
    VERSION: ClassVar[int] = 1

    format: Literal["harmony-bench-phone"] = "harmony-bench-phone"
    format_version: Literal[1] = 1
    harmony_version: str
    tier: Literal["phone"] = "phone"
    engine: Literal["executorch"] = "executorch"
    threads: Literal[1] = 1
    regime: Literal["hot"] = "hot"
    host: Host
    runs: Annotated[tuple[PhoneRun, ...], Field(min_length=1)]


class Phone:
    """One phone that answers."""

    def __init__(self, adb: str, serial: str, model: str) -> None:
        self.serial, self.model, self._adb = serial, model, adb

    @classmethod
    def find(cls, serial: str | None = None) -> Phone:
        """The one that is connected, or the one of that serial.

        EngineUnavailable without adb or without a phone that lets itself be used; ConfigError if it has to be chosen.
        """
        if serial is not None and not _SERIAL.fullmatch(serial):
            raise ConfigError(f"'{serial}' is no serial", where="--adb", mend="take one that `adb devices` shows")
        adb = shutil.which("adb")
        if adb is None:
            raise EngineUnavailable("adb is not installed", where="--adb", mend="apt install adb")
        seen = {name: (state, rest) for name, state, rest in _DEVICE.findall(_run([adb, "devices", "-l"]))}
        ready = {name: rest for name, (state, rest) in seen.items() if state == "device"}
        if serial is None and len(ready) > 1:
            raise ConfigError("there are several phones", where="--adb", mend=f"name one: {', '.join(ready)}")
        chosen = serial or next(iter(ready), None)
        if chosen is None or chosen not in ready:
            states = ", ".join(f"{name} is {state}" for name, (state, _) in seen.items()) or "none is connected"
            raise EngineUnavailable(
                f"no phone{f' {serial}' if serial else ''} can be used: {states}", where="--adb",
                mend="connect one, turn on USB debugging, and allow this computer on its screen",
            )  # fmt: skip
        model = re.search(r"\bmodel:(\S+)", ready[chosen])
        return cls(adb, chosen, model.group(1) if model else "unknown")

    def run(self, bundle: Path, runner: Path, images: Path) -> PhoneRun:
        """Push, run, read, remove. runner: a folder with harmony-run for Android; images: raw, as it reads them."""
        precision = open_device_bundle(bundle).precision
        if not (runner / PROGRAM).is_file():
            raise EngineUnavailable(
                f"holds no {PROGRAM}", where=runner, mend="build it for Android first (docs/native.md)"
            )
        before = self._condition()
        try:
            self._shell("rm", "-rf", PLACE)
            self._shell("mkdir", "-p", PLACE)
            name_there = "bundle" if bundle.is_dir() else f"bundle{TAR}"
            for source, name in ((runner, "runner"), (bundle, name_there), (images, "images.bin")):
                self._do("push", str(source), f"{PLACE}/{name}")
            printed = self._shell(
                f"LD_LIBRARY_PATH={PLACE}/runner", f"{PLACE}/runner/{PROGRAM}",
                f"{PLACE}/{name_there}", f"{PLACE}/images.bin", "--time",
            )  # fmt: skip
        finally:
            self._shell("rm", "-rf", PLACE)
        times = parse_times(printed, self.serial)
        return PhoneRun(
            serial=self.serial,
            model=self.model,
            bundle=str(bundle),
            precision=precision,
            times=times["microseconds"],
            peak_kib=times["peak_kib"],
            before=before,
            after=self._condition(),
        )

    def _condition(self) -> Condition:
        return parse_condition(
            self._shell("dumpsys", "battery"), self._shell("cat", "/sys/class/thermal/thermal_zone*/temp", "||", "true")
        )

    def _shell(self, *words: str) -> str:
        return self._do("shell", *words)

    def _do(self, *arguments: str) -> str:
        return _run([self._adb, "-s", self.serial, *arguments])


def parse_times(printed: str, where: str) -> dict[str, Any]:
    """The last line of `harmony-run --time`; EngineError if it is no such line."""
    try:
        value = json.loads(printed.strip().splitlines()[-1])
        if isinstance(value["microseconds"], dict) and isinstance(value["peak_kib"], int):
            return dict(value)
    except (IndexError, KeyError, TypeError, ValueError):
        pass
    raise EngineError(f"the phone printed no times: {printed[-200:]!r}", where=where)


def parse_condition(battery: str, zones: str) -> Condition:
    """`dumpsys battery` and thermal zones in millidegrees; whatever cannot be read is None."""
    level = re.search(r"^\s*level: (\d{1,3})\s*$", battery, re.MULTILINE)
    degrees = [int(word) / 1000 for word in zones.split() if word.isdigit() and 10_000 < int(word) < 150_000]
    charge = int(level.group(1)) if level and int(level.group(1)) <= 100 else None
    return Condition(battery=charge, celsius=max(degrees, default=None))


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LONGEST_S)
    except subprocess.TimeoutExpired:
        raise EngineError("no answer in ten minutes", where=" ".join(command), mend="connect it again") from None
    if done.returncode:
        raise EngineError((done.stderr or done.stdout).strip()[-300:] or "failed", where=" ".join(command[:4]))
    return done.stdout
