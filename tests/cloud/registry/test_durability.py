"""What a kill, a second process and a full or forbidden disk leave of a registry: a whole one."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harmony.cloud.process import RunningService, running_service
from harmony.cloud.registry.audit import read_audit
from harmony.cloud.registry.catalogue import Registry
from harmony.cloud.registry.location import locate
from harmony.core.errors import ServiceError

if TYPE_CHECKING:
    from tests.cloud.conftest import Bundle, Client

ClientOf = Callable[[RunningService], "Client"]
Make = Callable[..., Path]
ME = "cli:me"
REGISTER = """
import sys
from pathlib import Path
from harmony.cloud.registry.catalogue import Registry
from harmony.cloud.registry.location import locate
url, store, *bundles = sys.argv[1:]
with Registry(locate(url, Path(store)), create=True) as registry:
    for bundle in bundles:
        print(registry.register(Path(bundle), who="cli:child").version, flush=True)
"""


def start(url: str, store: Path, bundles: list[Path]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", REGISTER, url, str(store), *map(str, bundles)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def require_whole(registry: Registry) -> None:
    """Every version has its bundle, its row in the audit log, and a number without a gap; latest is the last."""
    versions = registry.versions()
    assert registry.check() == len(versions)
    assert [one.version for one in versions] == list(range(1, len(versions) + 1))
    assert [one.version for one in registry.aliases()] == [str(len(versions))][: len(versions)]
    acts = [one.subject for one in reversed(read_audit(registry.database, limit=1000)) if "register" in one.act]
    assert acts == [f"backend/{one.version}" for one in versions]


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_kill_9_during_registration(url: str, bundle_of: Make, tmp_path: Path, after: int) -> None:
    """Killed at any moment after its `after`-th registration: what it had said is there, and the rest goes on."""
    store, bundles = tmp_path / "bundles", [bundle_of(f"run{number}") for number in range(12)]
    Registry(locate(url, store), create=True).database.close()
    with start(url, store, bundles) as child:
        assert child.stdout is not None
        said = [child.stdout.readline() for _ in range(after)]
        time.sleep(0.007 * after)  # somewhere inside the next one
        if not said:
            time.sleep(0.5)  # somewhere inside the imports or the first one
        child.kill()
        said += child.stdout.readlines()
    with Registry(locate(url, store)) as registry:
        require_whole(registry)
        assert len(registry.versions()) >= len(said)
        for bundle in bundles:
            registry.register(bundle, who=ME)
        require_whole(registry)
        assert len(registry.versions()) == len(bundles)
        registry.prune()
        assert {path.name for path in store.iterdir()} == {one.digest for one in registry.versions()}


def test_kill_9_of_a_service_that_swaps(
    folder_registry: Registry, bundle_of: Make, admin_key: str, client_of: ClientOf, tmp_path: Path
) -> None:
    for run in "ab":
        folder_registry.register(bundle_of(run), who=ME)
    place = ("--registry", str(tmp_path / "registry"))
    with pytest.raises(ServiceError, match="ended with code -9"), running_service(None, *place) as service:
        client = client_of(service)
        folder_registry.alias("backend", "latest", 1, who=ME)
        with client_connection(client) as connection:
            head = f"POST /v2/repository/models/backend/load HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {admin_key}"
            connection.sendall(f"{head}\r\nContent-Length: 0\r\n\r\n".encode())
            time.sleep(0.01)  # somewhere inside the swap
            os.kill(service.pid, signal.SIGKILL)
    assert folder_registry.check() == 2
    with running_service(None, *place) as service:
        assert client_of(service).get("/v2/models/backend").json["versions"] == ["1"]


def test_kill_9_of_a_worker_that_swaps_under_load(
    folder_registry: Registry, bundle_of: Make, admin_key: str, client_of: ClientOf, tensor: Any, tmp_path: Path
) -> None:
    """Of two workers, each following the registry: it stays whole, the other one answers, a new one comes and serves
    what the registry says by then."""
    for run in "ab":
        folder_registry.register(bundle_of(run), who=ME)
    with running_service(None, "--registry", str(tmp_path / "registry"), "--workers", "2") as service:
        client, document = client_of(service), tensor([1, 8, 4, 4], 512)

        def workers() -> list[str]:
            return Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()

        def answered() -> str:
            """The version that answers; the empty text from a connection that the killed worker had."""
            try:
                reply = client.binary(document, bytes(512))
            except (OSError, http.client.HTTPException):
                return ""
            assert reply.status == 200, reply.body
            return str(json.loads(reply.body[: int(reply.headers["inference-header-content-length"])])["model_version"])

        first = workers()[0]
        folder_registry.alias("backend", "latest", 1, who=ME)
        with client_connection(client) as connection:
            head = f"POST /v2/repository/models/backend/load HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {admin_key}"
            connection.sendall(f"{head}\r\nContent-Length: 0\r\n\r\n".encode())
            time.sleep(0.01)  # somewhere inside the swap
            os.kill(int(first), signal.SIGKILL)
        heard, deadline = [answered() for _ in range(4)], time.monotonic() + 30
        while first in workers() or len(workers()) < 2 or heard[-8:] != ["1"] * 8:
            assert time.monotonic() < deadline
            heard.append(answered())
    assert heard.count("") <= 4, "connections that were handed to the killed one; never of the other"
    assert folder_registry.check() == 2
    acts = [one.subject for one in read_audit(folder_registry.database, limit=1000) if "register" in one.act]
    assert sorted(acts) == ["backend/1", "backend/2"]


def client_connection(client: Client) -> Any:
    import socket

    return socket.create_connection((client.host, int(client.port)), timeout=20)


def test_who_comes_while_another_makes_the_file_waits_for_it(tmp_path: Path) -> None:
    """SQLite itself does not wait for the lock that its write-ahead log needs once."""
    file = tmp_path / "registry.db"
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    done = threading.Timer(0.3, lambda: other.execute("ROLLBACK"))
    done.start()
    with Registry(locate(f"sqlite:///{file}", tmp_path / "bundles"), create=True) as registry:
        assert registry.check() == 0
    done.join()
    other.close()


def test_two_processes_share_a_registry(url: str, bundle_of: Make, tmp_path: Path) -> None:
    """Both make it, both migrate it, both register: one after the other, without an error."""
    store, bundles = tmp_path / "bundles", [bundle_of(f"run{number}") for number in range(10)]
    children = [start(url, store, bundles[:6]), start(url, store, bundles[4:])]
    said = [child.communicate(timeout=100)[0].split() for child in children]
    assert [child.returncode for child in children] == [0, 0]
    with Registry(locate(url, store)) as registry:
        assert {int(one) for part in said for one in part} == set(range(1, 11))
        assert registry.check() == 10
        acts = [one.subject for one in reversed(read_audit(registry.database, limit=1000)) if "register" in one.act]
        assert acts == [f"backend/{number}" for number in range(1, 11)]


LIMITED = """
import resource, sys
from harmony.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.argv[1:2] = []
main()
"""


@pytest.mark.parametrize("limit", [2000, 12_000, 40_000, 70_000])
def test_a_disk_that_is_full(folder_registry: Registry, bundle_of: Make, tmp_path: Path, limit: int) -> None:
    """A limit on the size of files stands for the disk: it ends the copy of the bundle, or the database's log."""
    folder_registry.register(bundle_of("a"), who=ME)
    before = folder_registry.versions()
    command = [sys.executable, "-c", LIMITED, str(limit), "registry", "add", str(bundle_of("b"))]
    done = subprocess.run(
        [*command, "--registry", str(tmp_path / "registry")], capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode:  # the larger limits may leave room for everything
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith("harmony: StorageError: ")
        assert [one.version for one in folder_registry.versions()] == [one.version for one in before]
    assert (limit > 2000) or done.returncode == 2
    folder_registry.check()
    folder_registry.register(bundle_of("c"), who=ME)
    require_whole(folder_registry)


FORBIDDEN = """
import os, resource, sys, tempfile
from pathlib import Path
from harmony.cloud.registry.catalogue import Registry
from harmony.cloud.registry.keys import KeyLimits
from harmony.cloud.registry.location import locate
from harmony.core.errors import StorageError
with tempfile.TemporaryDirectory() as warm:  # what is imported late may lie where only root can read
    with Registry(locate(warm + "/registry"), create=True) as registry:
        registry.keys.create("phones", KeyLimits(), who="cli:child")
if os.getuid() == 0:
    os.seteuid(65534)
try:
    with Registry(locate(sys.argv[1]), create=True) as registry:
        registry.keys.create("phones", KeyLimits(), who="cli:child")
except StorageError as error:
    print(error)
"""


@pytest.mark.parametrize("made", [True, False])
def test_a_place_that_must_not_be_written(made: bool) -> None:
    # Not in tmp_path: root gives its rights away in the child, and then could not even enter that.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        place = folder / "registry"
        if made:
            Registry(locate(str(place)), create=True).database.close()
        paths = [folder, *folder.rglob("*")]
        for path in paths:
            path.chmod(0o555)
        command = [sys.executable, "-c", FORBIDDEN, str(place)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert "cannot be written" in done.stdout
        assert str(place) in done.stdout
        for path in paths:
            path.chmod(0o755)


def test_a_service_goes_on_without_its_database(
    postgres_database: str, bundle: Bundle, admin_key: str, client_of: ClientOf, tmp_path: Path
) -> None:
    import psycopg

    with Registry(locate(postgres_database, tmp_path / "bundles")) as registry:
        registry.register(bundle.folder, who=ME)
    server, name = postgres_database.rsplit("/", 1)
    options = ("--registry", postgres_database, "--store", str(tmp_path / "bundles"), "--log-level", "error")
    admin = {"Authorization": f"Bearer {admin_key}"}
    with running_service(None, *options) as service:
        client = client_of(service)
        with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
            load = ("POST", "/v2/repository/models/backend/load")
            assert client.call(*load, headers=admin).status == 200, "a lost connection is made again"
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        away = client.call(*load, headers=admin)
        assert (away.status, away.headers["retry-after"]) == (503, "5")
        assert name not in away.error, "where the registry lies is nobody's business"
        assert client.infer(b"").status == 400
        assert client.get("/v2/models/backend").status == 200


def test_a_registry_that_does_not_answer_holds_nobody_up(
    bundle: Bundle, client_of: ClientOf, folder_registry: Registry, admin_key: str, tmp_path: Path
) -> None:
    """A load waits up to 10 s for the database, on a thread that the interpreter would wait for at its end."""
    folder_registry.register(bundle.folder, who="test")
    answers: list[Any] = []
    with running_service(None, "--registry", str(tmp_path / "registry"), "--drain-seconds", "1") as service:
        client = client_of(service)
        admin = {"Authorization": f"Bearer {admin_key}"}
        database = sqlite3.connect(tmp_path / "registry" / "registry.db", isolation_level=None)
        database.execute("BEGIN IMMEDIATE")

        def load() -> None:
            answers.append(client.call("POST", "/v2/repository/models/backend/load", b"{}", admin))

        asking = threading.Thread(target=load)
        asking.start()
        time.sleep(0.5)
        os.kill(service.pid, signal.SIGTERM)
        gone = Path(f"/proc/{service.pid}")
        deadline = time.monotonic() + 8
        while gone.exists() and "\nState:\tZ" not in (gone / "status").read_text():
            assert time.monotonic() < deadline, "the service waits for the database"
            time.sleep(0.01)
        asking.join()
        database.execute("ROLLBACK")
        database.close()
    assert [(one.status, one.error) for one in answers] == [(503, "the service is stopping")]
