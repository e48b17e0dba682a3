"""Keys in the registry, and what a real service makes of them."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harmony.cloud.keys import ORDINARY, KeyGrant, KeyRing, digest
from harmony.cloud.process import RunningService, running_service
from harmony.cloud.refusal import Refusal
from harmony.cloud.registry.audit import read_audit
from harmony.cloud.registry.keys import KeyLimits, scopes_of
from harmony.core.errors import ConfigError

if TYPE_CHECKING:
    from harmony.cloud.registry.catalogue import Registry
    from tests.cloud.conftest import Bundle, Client, Reply

ClientOf = Callable[[RunningService], "Client"]
ME = "cli:me"
INFER = KeyLimits(scopes_of(["infer"]))


def secrets_of(registry: Registry) -> set[str]:
    """Digests of the keys that count."""
    return {one.digest for one in registry.wanted().grants or ()}


def test_a_key_is_told_once_and_kept_as_its_hash(registry: Registry, tmp_path: Path) -> None:
    key, secret = registry.keys.create("phones", INFER, who=ME)
    assert secrets_of(registry) == {digest(secret)}
    assert digest(secret).startswith(key.id)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or secret.encode() not in path.read_bytes()
    assert secret not in repr(registry.keys.all()) + repr(read_audit(registry.database))
    with pytest.raises(ConfigError, match="a key 'phones' already"):
        registry.keys.create("phones", INFER, who=ME)


def test_rotation_overlaps_and_keeps_everything_but_the_secret(registry: Registry) -> None:
    limits = KeyLimits(ORDINARY, seconds=1000, rate=5, inflight=2)
    old, old_secret = registry.keys.create("phones", limits, who=ME)
    new, new_secret = registry.keys.rotate("phones", overlap=100, who=ME)
    assert secrets_of(registry) == {digest(old_secret), digest(new_secret)}
    assert (new.scopes, new.rate, new.inflight) == (old.scopes, 5, 2)
    assert new.expires == pytest.approx(time.time() + 1000, abs=30)
    ends = {key.id: key.expires for key in registry.keys.all()}
    assert ends[old.id] == pytest.approx(time.time() + 100, abs=30)
    registry.keys.rotate("phones", overlap=0, who=ME)
    assert len(secrets_of(registry)) == 1
    assert [key.state for key in registry.keys.all()] == ["expired", "expired", "active"]


def test_revoking_by_name_or_id(registry: Registry) -> None:
    one, _ = registry.keys.create("phones", INFER, who=ME)
    registry.keys.rotate("phones", overlap=100, who=ME)
    assert [key.id for key in registry.keys.revoke(one.id, who=ME)] == [one.id]
    assert len(secrets_of(registry)) == 1
    registry.keys.revoke("phones", who=ME)
    assert secrets_of(registry) == set()
    for act in (registry.keys.revoke, lambda name, who: registry.keys.rotate(name, overlap=0, who=who)):
        with pytest.raises(ConfigError, match="no active key 'phones'"):
            act("phones", who=ME)
    registry.keys.create("phones", INFER, who=ME)
    acts = [one.act for one in reversed(read_audit(registry.database))]
    assert acts == ["key.create", "key.rotate", "key.revoke", "key.revoke", "key.create"]


@pytest.mark.parametrize(
    "limits",
    [
        {"seconds": 0.0},
        {"seconds": float("inf")},
        {"rate": 0.0},
        {"rate": float("nan")},
        {"rate": 1e9},
        {"inflight": 0},
        {"inflight": -1},
    ],
)
def test_limits_that_cannot_be_meant(folder_registry: Registry, limits: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        folder_registry.keys.create("phones", replace(INFER, **limits), who=ME)
    for name in ("", "a b", "x" * 65, "schlüssel"):
        with pytest.raises(ConfigError, match="no name of a key"):
            folder_registry.keys.create(name, INFER, who=ME)
    with pytest.raises(ConfigError, match="'root' is no scope"):
        scopes_of(["infer", "root"])
    assert folder_registry.keys.all() == []


SECRET = "a-key-for-these-tests-alone"


def ring_of(**limits: Any) -> tuple[KeyRing, KeyGrant]:
    grant = KeyGrant("phones", digest(SECRET), ORDINARY, **limits)
    return KeyRing([grant]), grant


def test_a_rate_lets_a_second_through_at_once_and_then_as_many_a_second() -> None:
    ring, grant = ring_of(rate=4.0)
    caller = ring.find(f"Bearer {SECRET}".encode())
    assert caller is not None
    times = [100.0] * 5 + [100.2, 100.3, 100.3, 200.0, 200.0, 200.0, 200.0, 200.0]
    passed = []
    for now in times:
        try:
            caller.enter(now)
        except Refusal as refusal:
            assert (refusal.status, refusal.headers) == (429, ((b"retry-after", b"1"),))
            passed.append(False)
        else:
            caller.leave()
            passed.append(True)
    assert passed == [True] * 4 + [False, False, True, False] + [True] * 4 + [False]
    ring.update([grant])
    with pytest.raises(Refusal, match="4 times a second"):
        caller.enter(200.0)  # a refresh of the ring forgives nothing


def test_requests_under_way_are_counted_through_a_refresh() -> None:
    ring, grant = ring_of(inflight=2)
    caller = ring.find(f"Bearer {SECRET}".encode())
    assert caller is not None
    caller.enter(1.0)
    caller.enter(1.0)
    ring.update([replace(grant, name="renamed")])
    with pytest.raises(Refusal, match="2 requests under way"):
        caller.enter(1.0)
    caller.leave()
    caller.enter(1.0)
    assert ring.find(f"Bearer {SECRET}".encode()) is caller
    assert caller.name == "renamed"


def test_an_expired_key_is_a_strangers() -> None:
    ring, grant = ring_of(expires=time.time() + 1000)
    assert ring.find(f"Bearer {SECRET}".encode()) is not None
    ring.update([replace(grant, expires=time.time())])
    assert ring.find(f"Bearer {SECRET}".encode()) is None


@pytest.fixture
def service(folder_registry: Registry, bundle: Bundle) -> Iterator[RunningService]:
    folder_registry.register(bundle.folder, who=ME)
    with running_service(None, "--registry", str(folder_registry.store.folder("x").parent.parent)) as running:
        yield running


@pytest.fixture
def two_workers(folder_registry: Registry, bundle: Bundle) -> Iterator[RunningService]:
    folder_registry.register(bundle.folder, who=ME)
    place = str(folder_registry.store.folder("x").parent.parent)
    # A machine that stands still for a while must not end what the test holds up.
    with running_service(None, "--registry", place, "--workers", "2", "--body-seconds", "600") as running:
        yield running


def until(ask: Callable[[], Reply], status: int) -> Reply:
    """The service follows the registry within a second or so. Counted in questions: a machine may stand still."""
    for _ in range(200):
        reply = ask()
        if reply.status == status:
            break
        time.sleep(0.1)
    assert reply.status == status
    return reply


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_a_running_service_follows_what_happens_to_keys(
    service: RunningService, folder_registry: Registry, client_of: ClientOf
) -> None:
    client, keys = client_of(service), folder_registry.keys
    _, infer = keys.create("infer", INFER, who=ME)
    _, read = keys.create("read", KeyLimits(scopes_of(["read"])), who=ME)
    _, admin = keys.create("admin", KeyLimits(scopes_of(["admin"])), who=ME)
    until(lambda: client.call("POST", "/v2/repository/models/backend/load", headers=bearer(admin)), 200)
    statuses = {
        name: [
            client.infer(b"", bearer(secret)).status,
            client.get("/v2/models/backend", bearer(secret)).status,
            client.get("/metrics", bearer(secret)).status,
            client.get("/v2/repository/audit", bearer(secret)).status,
        ]
        for name, secret in {"infer": infer, "read": read, "admin": admin}.items()
    }
    assert statuses == {"infer": [400, 200, 403, 403], "read": [403, 200, 200, 403], "admin": [403, 403, 403, 200]}
    assert client.get("/v2").status == 200, "a key of the command line counts beside the registry's"
    who = client.get("/v2/repository/audit?limit=1", bearer(admin)).json[0]
    assert (who["act"], who["who"]) == ("model.load", "key:admin")
    _, newer = keys.rotate("infer", overlap=0, who=ME)
    until(lambda: client.infer(b"", bearer(infer)), 401)
    until(lambda: client.infer(b"", bearer(newer)), 400)
    for name in ("infer", "read", "admin"):
        keys.revoke(name, who=ME)
    until(lambda: client.infer(b"", bearer(newer)), 401)
    assert client.call("GET", "/v2", headers={"Authorization": ""}).status == 401, "no key left is not open to all"


def test_limits_are_kept_before_the_body_is_read(
    two_workers: RunningService, folder_registry: Registry, client_of: ClientOf
) -> None:
    """Of two workers, which take connections in turn."""
    client, keys = client_of(two_workers), folder_registry.keys
    _, slow = keys.create("slow", replace(INFER, rate=0.001), who=ME)
    _, one = keys.create("one", replace(INFER, inflight=1), who=ME)

    def worse_of_two() -> Reply:
        return max((client.infer(b"", bearer(one)) for _ in range(2)), key=lambda reply: reply.status)

    until(worse_of_two, 400)
    with closing(http.client.HTTPConnection(client.host, int(client.port), timeout=30)) as held:
        held.putrequest("POST", "/v2/models/backend/infer")
        for name, value in {**bearer(one), "Content-Length": "1000"}.items():
            held.putheader(name, value)
        held.endheaders(b"x" * 10)  # the rest does not come yet
        refused = until(lambda: client.infer(b"", bearer(one)), 429)
        assert ("1 requests under way" in refused.error, refused.headers["retry-after"]) == (True, "1")
        assert client.infer(b"", bearer(one)).status == 429, "nor does the other worker let it in"
        assert client.infer(b"").status == 400, "another key is not held up"
        held.send(b"x" * 990)
        assert held.getresponse().status == 400
    until(lambda: client.infer(b"", bearer(one)), 400)
    assert client.infer(b"", bearer(slow)).status == 400
    limited = client.call("POST", "/v2/models/backend/infer", headers={**bearer(slow), "Content-Length": "100000000"})
    assert limited.status == 429, "its body, which would be too large, is not looked at"
    assert int(limited.headers["retry-after"]) > 100
    told = [
        [line for line in client.get("/metrics").body.decode().splitlines() if 'reason="limited"' in line]
        for _ in range(2)
    ]
    assert told[0] == told[1] != []
