"""The registry's database: one transaction at a time that writes, migrations, and errors by name.

SQLite in WAL mode lets others read while one writes; a process that wants to write waits for the one that does. On
PostgreSQL an advisory lock does the same, so that version numbers and shares are decided by one writer after another.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, event, inspect, select, text, update
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DataError, DBAPIError

from harmony.cloud.registry.location import Location
from harmony.cloud.registry.schema import HEAD, StateRow
from harmony.core.errors import (
    ArtifactCorrupt,
    ArtifactMissing,
    ArtifactTooNew,
    ConfigError,
    HarmonyError,
    ServiceError,
    StorageError,
)
from harmony.core.storage import storing

BUSY_SECONDS = 10
_LOCK = 0x4841524D  # any number that no other program uses on this database
_WRITES = "harmony_writes"
_DISK = ("SQLITE_FULL", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_IOERR", "SQLITE_PERM")
_DISK_STATES = ("53100", "25006")  # PostgreSQL: disk full; read-only transaction


class Database:
    """One database, at its newest migration."""

    def __init__(self, location: Location, *, create: bool = False) -> None:
        """create: make a SQLite file that is not there. Migrates an older database.

        ArtifactMissing without the file, ArtifactTooNew for one of a later version, ArtifactCorrupt for another file,
        StorageError if the disk refuses, ServiceError if the server does not answer.
        """
        self.location = location
        if location.file is not None:
            _require_file(location.file, create=create)
        self._engine = _engine(location)
        try:
            self._migrate()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the registry."""
        with self._named(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """The one transaction that writes. After the block all of it is on the disk; after an error, nothing."""
        with self._locked() as connection:
            yield connection
            connection.execute(update(StateRow).values(revision=StateRow.revision + 1))

    def revision(self) -> int:
        """A number that grows with every change."""
        with self.reading() as connection:
            return connection.execute(select(StateRow.revision)).scalar_one()

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextmanager
    def _locked(self) -> Iterator[Connection]:
        with self._named(), self._engine.connect() as plain:
            connection = plain.execution_options(**{_WRITES: True})
            with connection.begin():
                if self.location.file is None:
                    connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
                yield connection

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise _named_error(error, self.location) from None

    def _migrate(self) -> None:
        if self._current() == HEAD:
            return
        with self._locked() as connection:
            current = _version(connection)  # again: another process may have been first
            if current is None or current < HEAD:
                _upgrade(connection)
            elif current > HEAD:
                raise ArtifactTooNew(
                    f"has version {current}, this program knows up to {HEAD}",
                    where=self.location,
                    mend="update harmony-sfl",
                )

    def _current(self) -> str | None:
        with self.reading() as connection:
            return _version(connection)


def _require_file(file: Path, *, create: bool) -> None:
    if file.is_file():
        return
    if not create:
        raise ArtifactMissing("no registry here", where=file, mend="make one with 'harmony registry add BUNDLE'")
    with storing(file):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.touch(mode=0o600)  # it holds who may ask


def _engine(location: Location) -> Engine:
    if location.file is None:
        options = f"-c lock_timeout={BUSY_SECONDS}s -c statement_timeout={2 * BUSY_SECONDS}s"
        # Milliseconds after which a server that is gone without a word counts as gone.
        arguments = {"connect_timeout": 5, "tcp_user_timeout": 1000 * BUSY_SECONDS, "options": options}
        return create_engine(location.url, pool_pre_ping=True, connect_args=arguments)
    engine = create_engine(location.url, connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    connection.isolation_level = None  # Python's own transactions would leave DDL outside; `_begin_sqlite` begins them
    _write_ahead(connection)
    for pragma in ("synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch to WAL, once for the life of the file. For this one lock SQLite does not wait: whoever comes while another
    process makes the file would be refused at once."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later could not wait for another writer: it would have to fail.
    immediate = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    return found


def _upgrade(connection: Connection) -> None:
    from alembic import command  # noqa: PLC0415  # a third of a second that only the first process needs
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _named_error(error: DBAPIError, location: Location) -> HarmonyError:
    cause = error.orig
    if isinstance(error, DataError):  # such as a name with a zero byte in it
        return ConfigError(f"cannot be meant: {str(cause).splitlines()[0]}", where=location)
    name = getattr(cause, "sqlite_errorname", None) or getattr(cause, "sqlstate", None) or ""
    said = str(cause).partition("\n")[0]
    if name.startswith(_DISK) or name in _DISK_STATES:
        return StorageError(f"cannot be written: {said}", where=location, mend="free some space, check its permissions")
    if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
        return ArtifactCorrupt(f"is not a registry: {said}", where=location, mend="check the path, or restore it")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")) or name == "55P03":
        return ServiceError(f"another process kept it for {BUSY_SECONDS} s", where=location, mend="try again")
    return ServiceError(f"the registry's database failed: {said}", where=location, mend="check that it runs")
