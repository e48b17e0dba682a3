"""API keys in the registry: hashed at rest, with scopes, expiry, limits, and rotation with an overlap."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, insert, or_, select, update
from sqlalchemy.engine import Connection, RowMapping

from harmony.cloud.keys import EVERY_SCOPE, ORDINARY, KeyGrant, KeyScope, digest, generate_key
from harmony.cloud.registry.audit import record
from harmony.cloud.registry.database import Database
from harmony.cloud.registry.schema import KeyRow
from harmony.core.errors import ConfigError
from harmony.core.spec import Frozen

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_MAX_RATE, _MAX_INFLIGHT = 1e6, 1_000_000


class Key(Frozen):
    """A key without its secret. id: first digits of its SHA-256; times: Unix seconds; rate: infer requests a second."""

    id: str
    name: str
    scopes: tuple[str, ...]
    created: float
    expires: float | None
    rate: float | None
    inflight: int | None
    revoked: float | None

    @property
    def state(self) -> str:
        """active, expired or revoked."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= time.time() else "active"


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What a new key may do. seconds: how long it lives, None for ever; rate and inflight: None for no limit."""

    scopes: frozenset[KeyScope] = ORDINARY
    seconds: float | None = None
    rate: float | None = None
    inflight: int | None = None

    def require_meant(self) -> None:
        """ConfigError, naming the field, for what cannot be meant."""
        if self.seconds is not None and not 0 < self.seconds <= 1e10:
            raise ConfigError("must lie in the future", field="expires", mend="for example 90d")
        if self.rate is not None and not 0 < self.rate <= _MAX_RATE:
            raise ConfigError(f"must be above 0 and at most {_MAX_RATE:g}", field="rate")
        if self.inflight is not None and not 1 <= self.inflight <= _MAX_INFLIGHT:
            raise ConfigError(f"must be from 1 to {_MAX_INFLIGHT}", field="inflight")


def require_name(name: str) -> None:
    """ConfigError unless a key can have the name."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"'{name[:64]}' is no name of a key", mend="letters, digits, _ . -, at most 64")


def scopes_of(names: Iterable[str]) -> frozenset[KeyScope]:
    """Scopes by name; ConfigError for another."""
    if unknown := set(names) - EVERY_SCOPE:
        raise ConfigError(f"'{min(unknown)}' is no scope", mend=f"choose from {', '.join(sorted(EVERY_SCOPE))}")
    return _scopes(names)


class KeyBook:
    """The keys of one registry. A key's secret is returned once, by `create` and `rotate`, and kept nowhere."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str, limits: KeyLimits, *, who: str) -> tuple[Key, str]:
        """(the new key, its secret). ConfigError if the name is taken by a key that is neither expired nor revoked."""
        require_name(name)
        limits.require_meant()
        with self._database.writing() as connection:
            if _active(connection, name):
                raise ConfigError(
                    f"there is a key '{name}' already", mend="rotate or revoke it, or choose another name"
                )
            return _insert(connection, name, limits, "key.create", who)

    def rotate(self, name: str, *, overlap: float, who: str) -> tuple[Key, str]:
        """(a new key of the same name, scopes, limits and life; its secret). The old one ends in `overlap` seconds.

        ConfigError if there is none, or for a negative overlap.
        """
        if not 0 <= overlap <= 1e10:
            raise ConfigError("must not be negative", field="overlap", mend="for example 24h")
        with self._database.writing() as connection:
            active = _active(connection, name)
            if not active:
                raise _unknown(name)
            newest = max(active, key=lambda key: key.created)
            for key in active:
                _end(connection, key, time.time() + overlap)
            life = None if newest.expires is None else newest.expires - newest.created
            limits = KeyLimits(_scopes(newest.scopes), life, newest.rate, newest.inflight)
            return _insert(connection, name, limits, "key.rotate", who)

    def revoke(self, name_or_id: str, *, who: str) -> list[Key]:
        """End every key of a name, or the one of an id, at once. Returns them; ConfigError if there is none."""
        with self._database.writing() as connection:
            keys = _active(connection, name_or_id)
            if not keys:
                raise _unknown(name_or_id)
            for key in keys:
                connection.execute(update(KeyRow).where(KeyRow.id == key.id).values(revoked=time.time()))
                record(connection, who, "key.revoke", key.name, id=key.id)
            return keys

    def all(self) -> list[Key]:
        """Every key there ever was, by name, oldest first."""
        with self._database.reading() as connection:
            rows = connection.execute(select(*_COLUMNS).order_by(KeyRow.name, KeyRow.created)).all()
            return [_key(row._mapping) for row in rows]


def grants_in(connection: Connection) -> list[KeyGrant]:
    """What a key ring needs of every key that is neither revoked nor expired."""
    query = select(KeyRow.name, KeyRow.digest, KeyRow.scopes, KeyRow.expires, KeyRow.rate, KeyRow.inflight)
    rows = connection.execute(query.where(*_is_active())).all()
    return [
        KeyGrant(row.name, row.digest, _scopes(row.scopes.split()), row.expires, row.rate, row.inflight) for row in rows
    ]


_COLUMNS = (
    *(KeyRow.id, KeyRow.name, KeyRow.scopes, KeyRow.created),
    *(KeyRow.expires, KeyRow.rate, KeyRow.inflight, KeyRow.revoked),
)


def _is_active() -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return KeyRow.revoked.is_(None), or_(KeyRow.expires.is_(None), KeyRow.expires > time.time())


def _active(connection: Connection, name_or_id: str) -> list[Key]:
    named = or_(KeyRow.name == name_or_id, KeyRow.id == name_or_id)
    return [_key(row._mapping) for row in connection.execute(select(*_COLUMNS).where(named, *_is_active())).all()]


def _key(row: RowMapping) -> Key:
    return Key(**{**row, "scopes": tuple(row["scopes"].split())})


def _scopes(names: Iterable[str]) -> frozenset[KeyScope]:
    return frozenset(scope for scope in EVERY_SCOPE if scope in names)


def _insert(connection: Connection, name: str, limits: KeyLimits, act: str, who: str) -> tuple[Key, str]:
    secret, now = generate_key(), time.time()
    sealed = digest(secret)
    key = Key(
        id=sealed[:12],
        name=name,
        scopes=tuple(sorted(limits.scopes)),
        created=now,
        expires=None if limits.seconds is None else now + limits.seconds,
        rate=limits.rate,
        inflight=limits.inflight,
        revoked=None,
    )
    values = {**key.model_dump(), "scopes": " ".join(key.scopes), "digest": sealed}
    connection.execute(insert(KeyRow).values(**values))
    record(connection, who, act, name, id=key.id, scopes=key.scopes, expires=key.expires)
    return key, secret


def _end(connection: Connection, key: Key, at: float) -> None:
    """Have a key expire at `at`, unless it does so earlier by itself."""
    if key.expires is None or key.expires > at:
        connection.execute(update(KeyRow).where(KeyRow.id == key.id).values(expires=at))


def _unknown(name: str) -> ConfigError:
    return ConfigError(f"there is no active key '{name[:64]}'", mend="see 'harmony keys list'")
