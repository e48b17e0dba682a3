"""Programs out of Debian's packages without being root: apt downloads and checks them, dpkg unpacks them to a folder.

apt gets lists and a cache of its own, so that nothing of the system is touched; it verifies the archive's signature and
every package's hash as it always does. What the packages need and the system has is not downloaded again.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from harmony.core.errors import EngineUnavailable

_SECONDS = 1800
_UNPACKER = ("dpkg", "--extract")


def can_fetch() -> bool:
    """Whether this is a system with Debian's tools."""
    return all(shutil.which(tool) for tool in ("apt-get", "dpkg"))


def fetch_packages(names: Sequence[str], folder: Path) -> list[str]:
    """Unpack the packages, with those that they need and the system lacks, into `folder`.

    Returns what was unpacked, as NAME_VERSION. EngineUnavailable, with apt's own words, if it cannot be had.
    """
    with tempfile.TemporaryDirectory(prefix="harmony-apt-") as work:
        archives = Path(work) / "cache" / "archives"
        for place in (archives / "partial", Path(work) / "lists" / "partial"):
            place.mkdir(parents=True)
        options = _options(Path(work))
        _run(["apt-get", *options, "update"], names)
        _run(["apt-get", *options, "install", "--yes", "--no-install-recommends", "--download-only", *names], names)
        found = sorted(archives.glob("*.deb"))
        for package in found:
            _run([*_UNPACKER, str(package), str(folder)], names)
    _prune(folder)
    return [package.name.rsplit("_", 1)[0].replace("%3a", ":") for package in found]


def _prune(folder: Path) -> None:
    """Away with documents, and with links to packages that the system has: they lead nowhere from here."""
    shutil.rmtree(folder / "usr" / "share", ignore_errors=True)
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.exists():
            path.unlink()


def wrap(command: str, folder: Path, *, sysroot: bool) -> Path:
    """A script that runs `command` of the packages in `folder` with the libraries in it. sysroot: as a compiler."""
    if not (folder / "usr" / "bin" / command).is_file():
        raise EngineUnavailable(f"the packages that were unpacked have no {command}", mend="put it on PATH")
    script = folder / "bin" / command
    script.parent.mkdir(exist_ok=True)
    there = '$(dirname "$(dirname "$(readlink -f "$0")")")'
    root = ' --sysroot="$there"' if sysroot else ""
    script.write_text(
        f'#!/bin/sh\nthere="{there}"\n'
        f'LD_LIBRARY_PATH="$there/{libraries_in(folder).relative_to(folder)}" '
        f'exec "$there/usr/bin/{command}"{root} "$@"\n',
        encoding="utf-8",
    )
    script.chmod(0o755)
    return script


def libraries_in(folder: Path) -> Path:
    """The folder of the unpacked packages' libraries for this machine."""
    return folder / "usr" / "lib" / f"{platform.machine()}-linux-gnu"


def _options(work: Path) -> list[str]:
    settings = (
        f"Dir::State::lists={work / 'lists'}", f"Dir::Cache={work / 'cache'}", "Debug::NoLocking=1",
        "APT::Sandbox::User=root", "Acquire::Languages=none",
    )  # fmt: skip
    return [word for setting in settings for word in ("-o", setting)]


def _run(command: list[str], names: Sequence[str]) -> None:
    mend = f"as root: apt install {' '.join(names)}"
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineUnavailable(f"{command[0]} failed: {error}", mend=mend) from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()
        raise EngineUnavailable(f"{command[0]} failed: {said[0] if said else 'it does not say why'}", mend=mend)
