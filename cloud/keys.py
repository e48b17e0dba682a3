"""API keys: only their SHA-256 is kept. Who may do what, how often, and how much at once."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from harmony.cloud.ledger import Ledger, Row, Shape
from harmony.cloud.refusal import Refusal
from harmony.core.errors import ConfigError, DataMissing

KeyScope = Literal["infer", "read", "admin"]
"""infer: ask models; read: metadata, statistics, metrics; admin: load, unload, read the audit log."""
ORDINARY: frozenset[KeyScope] = frozenset({"infer", "read"})
EVERY_SCOPE: frozenset[KeyScope] = frozenset(get_args(KeyScope))
MIN_KEY_LENGTH = 16
MAX_KEY_LENGTH = 256
_ALONE_KEYS = 1024
USED = 1
"""Numbers that a worker keeps of a key: its requests under way. What all write is when the next one is due."""
_SEALED = "sha256:"
_MAX_FILE_BYTES = 1 << 20
_ROUNDING_SECONDS = 1e-6


def generate_key() -> str:
    """A new key of 256 random bits, URL-safe."""
    return secrets.token_urlsafe(32)


def digest(key: str, *, where: str = "--key") -> str:
    """SHA-256 of a key, as hex. ConfigError if it cannot be sent in a header or is easily guessed."""
    if not MIN_KEY_LENGTH <= len(key) <= MAX_KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"a key has {MIN_KEY_LENGTH} to {MAX_KEY_LENGTH} printable ASCII characters without spaces",
            where=where,
            mend="leave it out, and one is made",
        )
    return hashlib.sha256(key.encode()).hexdigest()


def read_key_file(path: Path) -> list[str]:
    """Digests of a key file: one key a line, or `sha256:HEX` where the key itself shall not lie on the disk.

    Empty lines and lines that begin with # are skipped. ConfigError naming the line, DataMissing without a file.
    """
    if not path.is_file() or path.stat().st_size > _MAX_FILE_BYTES:
        raise DataMissing("no key file of at most 1 MiB", where=path, mend="check --key-file")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    entries = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    digests = [_entry(text, f"{path}:{number}") for number, text in entries if text and not text.startswith("#")]
    if not digests:
        raise ConfigError("holds no key", where=path, mend="write one key a line")
    return digests


def _entry(text: str, where: str) -> str:
    if not text.startswith(_SEALED):
        return digest(text, where=where)
    value = text.removeprefix(_SEALED).lower()
    if len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise ConfigError("sha256: is followed by 64 hexadecimal digits", where=where)
    return value


def environment_keys(environment: Mapping[str, str]) -> list[str]:
    """Keys in HARMONY_KEY, and in HARMONY_KEYS separated by commas."""
    found = [environment.get("HARMONY_KEY", ""), *environment.get("HARMONY_KEYS", "").split(",")]
    return [key.strip() for key in found if key.strip()]


def environment_admin_keys(environment: Mapping[str, str]) -> list[str]:
    """Keys in HARMONY_ADMIN_KEY, separated by commas."""
    return [key.strip() for key in environment.get("HARMONY_ADMIN_KEY", "").split(",") if key.strip()]


@dataclass(frozen=True, slots=True)
class KeyGrant:
    """What one key may do. Only the SHA-256 of the key is known.

    name: how logs and the audit name it; digest: hex; expires: Unix time in seconds, None for never; rate: infer
    requests a second (as many may come at once); inflight: infer requests under way at once; None for no limit.
    """

    name: str
    digest: str
    scopes: frozenset[KeyScope]
    expires: float | None = None
    rate: float | None = None
    inflight: int | None = None


class Caller:
    """A key in use. `enter` and `leave` keep its limits, over all workers, without waiting, locking or a database.

    Nothing is locked, so N workers that look in the same microsecond may all see the last free place: then N − 1
    requests more than the limit come in, and no more than that at any time.
    """

    __slots__ = ("_used", "grant")

    def __init__(self, grant: KeyGrant, used: Row) -> None:
        self.grant = grant
        self._used = used
        used.own[0] = 0  # what a worker that is gone had under way

    @property
    def name(self) -> str:
        """How logs and the audit name it."""
        return self.grant.name

    def require(self, *scopes: KeyScope) -> None:
        """403 unless the key has one of the scopes."""
        if self.grant.scopes.isdisjoint(scopes):
            wanted = " or ".join(f"'{scope}'" for scope in scopes)
            raise Refusal(403, "forbidden", f"this key lacks the scope {wanted}")

    def enter(self, now: float) -> None:
        """Begin a request; 429 with Retry-After above a limit. now: time.monotonic(). `leave` must follow a success."""
        grant = self.grant
        if grant.inflight is not None and self._used.total(0) >= grant.inflight:
            raise _too_many(1, f"this key may have {grant.inflight} requests under way at once")
        if grant.rate is not None:
            self._take_turn(now, grant.rate)
        self._used.own[0] += 1

    def leave(self) -> None:
        """End a request that had entered."""
        self._used.own[0] -= 1

    def _take_turn(self, now: float, rate: float) -> None:
        """One number tells all: when the request after this one were due, if they came evenly. A second's worth may
        come before it is due (the generic cell rate algorithm, ITU-T I.371)."""
        due = max(now, self._used.common[0])
        early = due - now - (max(1.0, rate) - 1) / rate
        if early > _ROUNDING_SECONDS:
            raise _too_many(early, f"this key may ask {rate:g} times a second")
        self._used.common[0] = due + 1 / rate


def _too_many(wait: float, message: str) -> Refusal:
    return Refusal(429, "limited", message, retry_after=wait)


class KeyRing:
    """Who may ask: a picture in memory, replaced when keys change. Found by digest: time tells nothing of a key.

    A ring without keys lets every program on this machine infer and read, and nobody administer.
    """

    def __init__(self, grants: Iterable[KeyGrant] = (), *, is_open: bool = False, ledger: Ledger | None = None) -> None:
        """ledger: what keys have used, over all workers; None for this process alone."""
        self._ledger = ledger or Ledger(Shape(_ALONE_KEYS, 1, USED))
        self.anyone = Caller(KeyGrant("anyone", "", ORDINARY), self._ledger.row("")) if is_open else None
        """Who asks without a key; None unless the ring is open."""
        self._callers: dict[bytes, Caller] = {}
        self.update(grants)

    @property
    def is_open(self) -> bool:
        """Whether no key is needed."""
        return self.anyone is not None

    def update(self, grants: Iterable[KeyGrant]) -> None:
        """These keys count from now on. What a key that stays has under way, and has used of its rate, stays."""
        known, callers = self._callers, {}
        for grant in grants:
            value = bytes.fromhex(grant.digest)
            callers[value] = known.get(value) or Caller(grant, self._ledger.row(grant.digest))
            callers[value].grant = grant
        self._callers = callers

    def find(self, authorization: bytes | None) -> Caller | None:
        """The caller that a header's value, `Bearer KEY`, belongs to; None for a stranger and an expired key."""
        caller = self.anyone
        if authorization is not None and authorization[:7].lower() == b"bearer ":
            caller = self._callers.get(hashlib.sha256(authorization[7:].strip()).digest(), caller)
        if caller is None or (caller.grant.expires is not None and caller.grant.expires <= time.time()):
            return None
        return caller


def granted(digests: Iterable[str], scopes: frozenset[KeyScope]) -> list[KeyGrant]:
    """Keys that came by option, environment or file: named by the first 8 digits of their digest, without limits."""
    return [KeyGrant(value[:8], value, scopes) for value in digests]
