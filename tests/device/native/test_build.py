"""How the core is built: once, whole, found again; and what is said where it cannot be."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from harmony.core.errors import ConfigError, EngineUnavailable
from harmony.device import Device, verify
from harmony.device import native_build as build
from harmony.device.native_engine import ABI, load_library

WHEEL = "HARMONY_TEST_AARCH64_WHEEL"
SYSROOT = Path("/usr/aarch64-linux-gnu")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A build that takes no time. Returns where it was asked to build to."""
    asked = []

    def make(out: Path, root: Path, *_: object) -> None:
        asked.append(out)
        for name in build.BUILT:
            (out / name).write_text(f"against {root}")

    monkeypatch.setattr(build, "build_native", make)
    monkeypatch.delenv(build.OVERRIDE, raising=False)
    return asked


def test_built_once_and_found_again(fake: list[Path]) -> None:
    assert build.find_native() is None
    place = build.ensure_native()
    assert {path.name for path in place.iterdir()} == {*build.BUILT, *build.RUNTIME}
    assert build.ensure_native() == build.find_native() == place
    assert len(fake) == 1
    assert fake[0] != place, "it appears when it is whole"


def test_built_again_for_other_sources_or_another_executorch(
    fake: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build.ensure_native()
    sources = tmp_path / "native"
    shutil.copytree(build.SOURCES, sources)
    monkeypatch.setattr(build, "SOURCES", sources)
    assert build.ensure_native() == first
    (sources / "scores.cpp").write_text((sources / "scores.cpp").read_text() + "\n")
    second = build.ensure_native()
    monkeypatch.setattr(build, "version", lambda _: "9.9.9")
    assert len({first, second, build.ensure_native()}) == 3


def test_a_build_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, fake: list[Path], own_cache: Path) -> None:
    def fail(out: Path, *_: object) -> None:
        (out / build.LIBRARY).write_text("half")
        raise EngineUnavailable("does not compile")

    monkeypatch.setattr(build, "build_native", fail)
    with pytest.raises(EngineUnavailable):
        build.ensure_native()
    assert build.find_native() is None
    assert not list((own_cache / "native").iterdir())


def test_no_cmake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineUnavailable, match=r"there is no cmake \(install cmake and g\+\+ .*--engine onnxruntime"):
        build.build_native(tmp_path, build.executorch_root())


def test_no_compiler(native_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(EngineUnavailable, match=r"CMake cannot prepare.*no-such-compiler"):
        build.build_native(tmp_path, build.executorch_root())
    assert not list(tmp_path.iterdir())


def test_sources_that_do_not_compile(native_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources, out = tmp_path / "native", tmp_path / "out"
    shutil.copytree(build.SOURCES, sources)
    out.mkdir()
    (sources / "device.cpp").write_text("this is no C++;\n")
    monkeypatch.setattr(build, "SOURCES", sources)
    with pytest.raises(EngineUnavailable, match=r"does not compile: .*device\.cpp.*error"):
        build.build_native(out, build.executorch_root())
    assert not list(out.iterdir())


def test_no_executorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_spec", lambda _: None)
    with pytest.raises(EngineUnavailable, match="needs the libraries of executorch, not installed here"):
        build.ensure_native()


def test_a_folder_that_is_named_but_holds_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build.OVERRIDE, str(tmp_path))
    with pytest.raises(ConfigError, match=r"HARMONY_NATIVE=.*holds no libharmony\.so"):
        build.find_native()


def test_a_library_that_is_none_or_another(native_build: Path, tmp_path: Path) -> None:
    path = tmp_path / build.LIBRARY
    path.write_bytes(b"\x7fELF")
    with pytest.raises(EngineUnavailable, match=r"libharmony\.so: cannot be loaded.*harmony native build"):
        load_library(path)
    other = tmp_path / "other.cpp"
    other.write_text(f'extern "C" unsigned harmony_abi() {{ return {ABI + 1}; }}\n')
    subprocess.run(["c++", "-shared", "-fPIC", other, "-o", tmp_path / "other.so"], check=True)
    with pytest.raises(EngineUnavailable, match=f"is of version {ABI + 1}, not {ABI}"):
        load_library(tmp_path / "other.so")


def test_auto_takes_native_only_if_it_is_there(
    native_build: Path, real: Path, images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "build_native", lambda *_: pytest.fail("auto must not compile"))
    monkeypatch.delenv(build.OVERRIDE, raising=False)
    answers = [Device.open(real, engine="auto").answer(images[0])]
    monkeypatch.setenv(build.OVERRIDE, str(native_build))
    answers += [Device.open(real, engine=name).answer(images[0]) for name in ("auto", "native", "onnxruntime")]
    assert answers[0].scores == answers[3].scores
    assert answers[1].scores == answers[2].scores


def test_auto_says_why_nothing_can_run(
    make_tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise EngineUnavailable("ExecuTorch is not installed")

    bundle = make_tiny(tmp_path / "b")
    monkeypatch.delenv(build.OVERRIDE, raising=False)
    monkeypatch.setattr("harmony.device.executorch_engine.ExecutorchEngine", missing)
    reasons = "onnxruntime: has no files for onnxruntime, only for executorch; executorch: ExecuTorch is not installed"
    with pytest.raises(EngineUnavailable, match=f"no engine can run here: {reasons}"):
        Device.open(bundle, engine="auto")


def test_verify_runs_it_if_asked(native: Path, real: Path) -> None:
    (check,) = verify(real, "native").engines
    assert check.engine == "native"
    assert check.max_error is not None
    assert 0 < check.max_error < 1e-4


def test_what_is_carried_away_needs_nothing_else(
    native_build: Path, real: Path, images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The binaries find ExecuTorch beside themselves, and know no other place."""

    def copy(out: Path, *_: object) -> None:
        for name in build.BUILT:
            shutil.copy2(native_build / name, out / name)

    monkeypatch.setattr(build, "build_native", copy)
    out = tmp_path / "carried"
    build.build_standalone(out)
    assert all((out / name).is_file() and not (out / name).is_symlink() for name in (*build.BUILT, *build.RUNTIME))
    np.save(tmp_path / "images.npy", images[:3])
    needed = subprocess.run(["ldd", out / build.PROGRAM], capture_output=True, text=True, check=True).stdout
    assert str(out / build.RUNTIME[0]) in needed
    assert str(build.executorch_root()).encode() not in (out / build.PROGRAM).read_bytes()
    done = subprocess.run([out / build.PROGRAM, real, tmp_path / "images.npy"], capture_output=True, check=True)
    assert len(done.stdout.splitlines()) == 3


def test_aarch64_gives_the_same_decisions(
    native_build: Path, real: Path, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    """Emulated. Where an operation is rounded otherwise, scores may differ in the last places, decisions may not."""
    wheel = os.environ.get(WHEEL)
    if not wheel or not shutil.which("aarch64-linux-gnu-g++") or not shutil.which("qemu-aarch64"):
        pytest.skip(f"needs g++-aarch64-linux-gnu, qemu-user, and an aarch64 wheel of executorch in {WHEEL}")
    build.build_standalone(tmp_path / "arm", "aarch64", Path(wheel))
    np.save(tmp_path / "images.npy", images[:40])
    rows = []
    for command in ([native_build / build.PROGRAM], ["qemu-aarch64", "-L", SYSROOT, tmp_path / "arm" / build.PROGRAM]):
        done = subprocess.run([*command, real, tmp_path / "images.npy"], capture_output=True, text=True, check=True)
        rows.append([line.split(', "probability"')[0] for line in done.stdout.splitlines()])
        assert len({line.split('"would_offload": ')[1] for line in done.stdout.splitlines()}) == 2
    assert rows[0] == rows[1]


def test_the_header_is_c(native_build: Path, tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text('#include "harmony.h"\nint main(void) { return harmony_abi() != HARMONY_ABI; }\n')
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here")
    strict = ["-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", f"-I{build.SOURCES}"]
    link = [f"-L{native_build}", "-lharmony", f"-Wl,-rpath,{native_build}", f"-Wl,-rpath-link,{native_build}"]
    subprocess.run(["cc", *strict, tmp_path / "main.c", "-o", tmp_path / "main", *link], check=True)
    subprocess.run([tmp_path / "main"], check=True)
