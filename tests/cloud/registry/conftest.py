"""A registry on each kind of database, and bundles to put into it."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import psycopg
import pytest
from onnx import numpy_helper

from harmony.cloud.registry.catalogue import Registry
from harmony.cloud.registry.location import locate
from harmony.core.spec import FeatureSpec

if TYPE_CHECKING:
    from tests.cloud.conftest import Build, Bundle, Floats, Graph

GraphType = Callable[..., "Graph"]
Make = Callable[..., Path]
DEBIAN = "usr/lib/postgresql"


@pytest.fixture
def bundle_of(build_bundle: Build, graph: GraphType, tmp_path: Path) -> Make:
    """Cloud bundles that differ by their run (the folder's name unless it is given), and perhaps by their cut."""

    def make(name: str, cut: FeatureSpec | None = None, **manifest: Any) -> Path:
        more, ports = {"run": name} | manifest, {}
        if cut is not None:
            more["feature"], ports["feature"] = cut, ["n", *cut.shape]

        def reshape(vectors: dict[str, Any]) -> None:
            if cut is not None:
                vectors["feature"] = vectors["feature"].reshape(-1, *cut.shape)

        return build_bundle(tmp_path / "made" / name, graph(manifest=more, vectors=reshape, **ports)).folder

    return make


def _negate(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer[:2]:
        tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))


def _negated(vectors: dict[str, Any]) -> None:
    vectors["probabilities"] = opposite(vectors["probabilities"])


def opposite(probabilities: Floats) -> Floats:
    """softmax(−z) from softmax(z)."""
    inverse = 1 / probabilities.astype(np.float64)
    out: Floats = (inverse / inverse.sum(axis=1, keepdims=True)).astype(np.float32)
    return out


@pytest.fixture
def pair(build_bundle: Build, graph: GraphType, tmp_path: Path) -> tuple[Bundle, Bundle]:
    """Two bundles of one model; the second answers with `opposite` of the first's answer."""
    first = build_bundle(tmp_path / "made" / "first", graph(manifest={"run": "first"}))
    second = build_bundle(
        tmp_path / "made" / "second", graph(manifest={"run": "second"}, edit=_negate, vectors=_negated)
    )
    return first, replace(second, weight=-first.weight, bias=-first.bias)


@pytest.fixture
def admin_key(monkeypatch: pytest.MonkeyPatch) -> str:
    """A key that services started in this test let administer."""
    monkeypatch.setenv("HARMONY_ADMIN_KEY", "an-admin-key-of-the-tests")
    return "an-admin-key-of-the-tests"


@pytest.fixture
def folder_registry(tmp_path: Path) -> Iterator[Registry]:
    """An empty registry in tmp_path / "registry"."""
    with Registry(locate(str(tmp_path / "registry")), create=True) as opened:
        yield opened


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place for a registry; bundles go to tmp_path / "bundles"."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.db'}"
    made: str = request.getfixturevalue("postgres_database")
    return made


@pytest.fixture
def registry(url: str, tmp_path: Path) -> Iterator[Registry]:
    with Registry(locate(url, tmp_path / "bundles"), create=True) as opened:
        yield opened


@pytest.fixture
def postgres_database(postgres: str) -> str:
    """The URL of a new database."""
    name = f"registry_{secrets.token_hex(4)}"
    with psycopg.connect(f"{postgres}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{postgres}/{name}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL, without a database, of a PostgreSQL server of our own, gone afterwards. It refuses to run as root."""
    programs = sorted(Path("/").glob(f"{DEBIAN}/*/bin/postgres"))
    if not programs:
        pytest.skip(f"no PostgreSQL in /{DEBIAN} (Debian's package 'postgresql')")
    server = programs[-1].parent
    user = "nobody" if os.getuid() == 0 else None
    home = Path(tempfile.mkdtemp(prefix="harmony-postgres-", dir=_in_memory()))
    data, port = home / "data", _free_port()
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories='' -c fsync=off"
    try:
        if user is not None:
            os.chown(home, pwd.getpwnam(user).pw_uid, -1)
        _run(user, server / "initdb", "-D", data, "-U", "harmony", "-A", "trust", "--no-sync")
        _run(user, server / "pg_ctl", "-D", data, "-w", "-o", options, "-l", home / "log", "start")
        try:
            yield f"postgresql://harmony@127.0.0.1:{port}"
        finally:
            _run(user, server / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(home)


def _in_memory() -> Path | None:
    """A folder in memory, if there is one with room: a database is hundreds of files, written and removed again."""
    folder = Path("/dev/shm")  # noqa: S108  # mkdtemp makes a folder of its own in it
    return folder if folder.is_dir() and shutil.disk_usage(folder).free > 1 << 30 else None


def _run(user: str | None, *command: Path | str) -> None:
    # Not a pipe: the server would hold it open, and nobody would see its end.
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(command, user=user, stdout=output, stderr=output, cwd="/", timeout=120, check=False)
        output.seek(0)
        assert done.returncode == 0, output.read().decode(errors="replace")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
