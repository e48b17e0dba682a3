"""Where a registry lies: its database and its bundles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from harmony.core.errors import ConfigError

DATABASE, BUNDLES = "registry.db", "bundles"
_DRIVERS = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}


@dataclass(frozen=True)
class Location:
    """A database and the folder of its bundles. file: the SQLite file, None for a server."""

    url: URL
    store: Path
    file: Path | None

    def __str__(self) -> str:
        """For messages: never with the password."""
        return str(self.file) if self.file else self.url.render_as_string(hide_password=True)


def locate(text: str, store: Path | None = None) -> Location:
    """A folder (`registry.db` and `bundles/` lie in it), sqlite:///FILE, or postgresql://… together with a store.

    ConfigError for another URL, and for a server without a store.
    """
    if "://" not in text:
        folder = Path(text)
        return _in_file(folder / DATABASE, store or folder / BUNDLES)
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ConfigError("is not a database URL", where="--registry", mend=_MEND) from None
    driver = _DRIVERS.get(url.drivername)
    if driver is None:
        raise ConfigError(f"'{url.drivername}' is not supported", where="--registry", mend=_MEND)
    if url.drivername == "sqlite":
        if url.database in (None, "", ":memory:") or url.query or url.host:
            raise ConfigError("is not the URL of a file", where="--registry", mend="write sqlite:///FILE")
        file = Path(str(url.database))
        return _in_file(file, store or file.parent / BUNDLES)
    if store is None:
        raise ConfigError(
            "a database server keeps no bundles", where="--registry", mend="give their folder with --store"
        )
    return Location(url.set(drivername=driver), store, None)


_MEND = "give a folder, sqlite:///FILE, or postgresql://USER@HOST/NAME with --store FOLDER"


def _in_file(file: Path, store: Path) -> Location:
    return Location(URL.create(_DRIVERS["sqlite"], database=str(file.absolute())), store, file)
