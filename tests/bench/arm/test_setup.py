"""Where something is missing, the command that brings it is said; what comes out of packages is run as it has to be."""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from harmony.bench.arm import environment, setup, wheels
from harmony.bench.arm.debian import fetch_packages, libraries_in, wrap
from harmony.bench.arm.environment import RECORD, ArmEnvironment, environment_folder, open_environment
from harmony.core.errors import ArtifactCorrupt, EngineUnavailable
from harmony.device import native_build

Script = Callable[[str, str], Path]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Puts a command on an otherwise empty PATH."""
    folder = tmp_path / "path"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def put(name: str, text: str) -> Path:
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
        return folder / name

    return put


def test_a_compiler_that_is_missing_is_named_with_its_package(script: Script) -> None:
    script("make", "")
    with pytest.raises(EngineUnavailable, match=r"needs cc, cmake, not found here \(as root: apt install cmake gcc\)"):
        setup.setup_arm()


def test_without_apt_the_packages_are_named(script: Script) -> None:
    for name in setup.HOST:
        script(name, "")
    with pytest.raises(
        EngineUnavailable,
        match=r"needs qemu-aarch64, .*: apt install qemu-user gcc-aarch64-linux-gnu g\+\+-aarch64-linux-gnu; elsewhere",
    ):
        setup.setup_arm()
    assert not environment_folder().exists()


def test_what_apt_complains_of_is_said(script: Script, tmp_path: Path) -> None:
    script("dpkg", "")
    script("apt-get", 'case "$*" in *install*) echo "E: Unable to locate package qemu-user" >&2; exit 100;; esac')
    with pytest.raises(
        EngineUnavailable,
        match=r"apt-get failed: E: Unable to locate package qemu-user \(as root: apt install qemu-user\)",
    ):
        fetch_packages(["qemu-user"], tmp_path)


def test_apt_is_given_nothing_of_the_system_to_write_to(script: Script, tmp_path: Path) -> None:
    script("dpkg", "")
    script("apt-get", f'echo "$*" >>{tmp_path}/asked')
    assert fetch_packages(["qemu-user"], tmp_path) == []
    update, install = (tmp_path / "asked").read_text().splitlines()
    for asked in (update, install):
        words = asked.split()
        places = [word.split("=")[1] for word in words if word.startswith("Dir::")]
        assert [word.split("=")[0] for word in words if word.startswith("Dir::")] == ["Dir::State::lists", "Dir::Cache"]
        assert not any(place.startswith(("/var", "/etc", "/usr")) for place in places)
    assert "--download-only" in install
    assert install.endswith("qemu-user")


def test_an_unpacked_command_finds_its_libraries_and_its_root(tmp_path: Path) -> None:
    command = tmp_path / "usr" / "bin" / "compiler"
    command.parent.mkdir(parents=True)
    command.write_text('#!/bin/sh\necho "$LD_LIBRARY_PATH|$*"\n')
    command.chmod(0o755)
    for sysroot, words in ((True, f"--sysroot={tmp_path} -c 'a b'"), (False, "-c a b")):
        path = wrap("compiler", tmp_path, sysroot=sysroot)
        said = subprocess.run([path, "-c", "a b"], capture_output=True, text=True, check=True).stdout.strip()
        assert said == f"{libraries_in(tmp_path)}|{words.replace(chr(39), '')}"


def test_links_that_lead_nowhere_are_not_kept(script: Script, tmp_path: Path) -> None:
    """The folder is synced file by file; such a link, to a library that the system has already, once ended that."""
    unpack = 'mkdir -p "$3/usr/bin" "$3/usr/share/doc" && echo >"$3/usr/bin/tool" && ln -s gone.so.1 "$3/usr/bin/a.so"'
    script("dpkg", f"PATH=/usr/bin:/bin; {unpack}")
    script(
        "apt-get",
        'for word; do case "$word" in Dir::Cache=*) : >"${word#*=}/archives/tool_1%3a2-3_amd64.deb";; esac; done',
    )
    (tmp_path / "out").mkdir()
    assert fetch_packages(["tool"], tmp_path / "out") == ["tool_1:2-3"]
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["usr", "bin", "tool"]
    with pytest.raises(EngineUnavailable, match=r"have no qemu-aarch64 \(put it on PATH\)"):
        wrap("qemu-aarch64", tmp_path / "out", sysroot=False)


def test_an_environment_that_was_not_built(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match=r"was not built for this version \(harmony bench setup-arm\)"):
        open_environment()


def test_an_emulator_that_is_gone_and_a_record_that_is_none(tmp_path: Path) -> None:
    folder = environment_folder()
    folder.mkdir(parents=True)
    record = ArmEnvironment(emulator=str(tmp_path / "qemu"), versions={})
    (folder / RECORD).write_text(record.model_dump_json())
    with pytest.raises(EngineUnavailable, match=r"qemu is gone \(remove .*, then harmony bench setup-arm\)"):
        open_environment()
    (tmp_path / "qemu").touch()
    assert open_environment() == (folder, record)
    (folder / RECORD).write_text("{}")
    with pytest.raises(ArtifactCorrupt, match="Field required"):
        open_environment()


def test_other_sources_are_another_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {environment_folder()}
    (tmp_path / "plugin.c").write_text("int other;")
    for module in (environment, native_build):
        with monkeypatch.context() as patch:
            patch.setattr(module, "SOURCES", tmp_path)
            found.add(environment_folder())
    assert len(found) == 3


def test_of_a_wheel_only_what_is_needed_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("executorch/lib/a.so", "executorch/other.py", "../executorch/lib/b.so"):
            archive.writestr(name, b"")
    wheels._unpack(path, ("executorch/lib/",), tmp_path / "out")
    assert [one.name for one in tmp_path.rglob("*") if one.is_file()] == ["a.whl", "a.so"]
    with pytest.raises(EngineUnavailable, match="not the wheel that was expected"):
        wheels._unpack(path, ("onnxruntime/",), tmp_path / "out")
