"""Versions and aliases: what there is, what it is called, and so what services serve."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from sqlalchemy import delete, select, update

from harmony.cloud.lanes import LATEST, Alias
from harmony.cloud.registry import rows
from harmony.cloud.registry.audit import read_audit, record
from harmony.cloud.registry.database import Database
from harmony.cloud.registry.keys import KeyBook, grants_in
from harmony.cloud.registry.location import Location
from harmony.cloud.registry.rows import Version
from harmony.cloud.registry.schema import AliasRow, ModelRow, StateRow, VersionRow
from harmony.cloud.registry.store import BundleStore, Verify, verify
from harmony.cloud.source import Wanted, WantedVersion
from harmony.core.errors import ArtifactCorrupt, ConfigError
from harmony.core.signing import Trust

_ALIAS = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")  # never digits alone: those are versions


class Registry:
    """A database and a store. Every change is one transaction with its row in the audit log."""

    shared = True

    def __init__(
        self, location: Location, *, create: bool = False, check: Verify = verify, trust: Trust | None = None
    ) -> None:
        """create: make the SQLite file if it is not there; trust: keys of which one must have signed what is registered
        or served. Raises what `Database` does."""
        self.database, self.trust = Database(location, create=create), trust
        self.store = BundleStore(location.store, check, trust)
        self.keys = KeyBook(self.database)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    def register(self, folder: Path, *, who: str, names: Sequence[str] = (LATEST,), share: float = 0.0) -> Version:
        """Take a bundle in, number it, and point `names` at it. A bundle that is known keeps its number.

        share: of the model's traffic of this cut, for every name but `latest`. The errors of `verify` for a bundle
        that cannot be served, ConfigError for a name or share, StorageError if the disk refuses.
        """
        check_names(names, share)
        stored = self.store.put(folder)
        with self.database.writing() as connection:
            if not self.store.folder(stored.digest).is_dir():  # pruned meanwhile; not again while this transaction runs
                self.store.put(folder)
            model, number = stored.manifest.model, rows.number(connection, stored, who)
            for name in names:
                rows.point(connection, Alias(model, name, str(number), share, str(stored.manifest.feature)), who)
        return self.version(model, number)

    def alias(self, model: str, name: str, version: int, *, who: str, share: float = 0.0) -> None:
        """Point a name at a version, for the version's cut contract alone. ConfigError naming what is not there."""
        check_names([name], share)
        with self.database.writing() as connection:
            cut = rows.require(connection, model, version)
            rows.point(connection, Alias(model, name, str(version), share, cut), who)

    def unalias(self, model: str, name: str, *, who: str) -> None:
        """Take a name away, for every cut contract. ConfigError if there is none."""
        with self.database.writing() as connection:
            gone = connection.execute(delete(AliasRow).where(AliasRow.model == model, AliasRow.name == name))
            if not gone.rowcount:
                raise ConfigError(f"model '{model}' has no alias '{name}'", mend="see 'harmony registry list'")
            record(connection, who, "alias.remove", f"{model}@{name}")

    def remove(self, model: str, version: int, *, who: str) -> None:
        """Forget a version and delete its bundle. ConfigError while a name points at it. Its number stays used."""
        with self.database.writing() as connection:
            rows.require(connection, model, version)
            here = (AliasRow.model == model, AliasRow.version == version)
            if names := connection.execute(select(AliasRow.name).where(*here)).scalars().all():
                raise ConfigError(
                    f"version {version} of '{model}' is served as {', '.join(sorted(names))}",
                    mend="point that at another version first",
                )
            connection.execute(delete(VersionRow).where(VersionRow.model == model, VersionRow.version == version))
            record(connection, who, "version.remove", f"{model}/{version}")
        self.prune()

    def prune(self) -> list[str]:
        """Delete bundles that no version has, such as a killed registration leaves. Returns their digests."""
        with self.database.writing() as connection:
            return self.store.remove_all_but(connection.execute(select(VersionRow.digest)).scalars())

    def set_loaded(self, model: str, *, loaded: bool, who: str) -> None:
        """Have every service serve the model, or stop serving it. ConfigError if it is unknown."""
        with self.database.writing() as connection:
            changed = connection.execute(update(ModelRow).where(ModelRow.name == model).values(loaded=loaded))
            if not changed.rowcount:
                raise ConfigError(f"the registry has no model '{model[:64]}'", mend="see 'harmony registry list'")
            record(connection, who, "model.load" if loaded else "model.unload", model)

    def version(self, model: str, version: int) -> Version:
        """One version. ConfigError if it is not there."""
        for one in self.versions(model):
            if one.version == version:
                return one
        raise rows.unknown(model, version)

    def versions(self, model: str | None = None) -> list[Version]:
        """Every version, of one model or of all, oldest first."""
        with self.database.reading() as connection:
            return [one for one in rows.versions(connection) if model in (None, one.model)]

    def aliases(self) -> list[Alias]:
        """Every alias, by model and name."""
        with self.database.reading() as connection:
            return rows.aliases(connection)

    def check(self) -> int:
        """Compare every byte of every bundle with what was registered. Returns how many; a named ArtifactError."""
        versions = self.versions()
        for one in versions:
            found = self.store.check(one.digest)
            if (found.model, str(found.feature)) != (one.model, one.cut):
                raise ArtifactCorrupt("holds another model than was registered", where=self.store.folder(one.digest))
        return len(versions)

    def revision(self) -> int:
        """A number that grows with every change."""
        return self.database.revision()

    def wanted(self) -> Wanted:
        """What services shall serve, seen in one transaction: every version that a name points at."""
        with self.database.reading() as connection:
            revision = connection.execute(select(StateRow.revision)).scalar_one()
            aliases = rows.aliases(connection)
            models = connection.execute(select(ModelRow.name, ModelRow.loaded)).all()
            digests = connection.execute(select(VersionRow.model, VersionRow.version, VersionRow.digest)).all()
            grants = grants_in(connection)
        loaded = {one.name: one.loaded for one in models}
        named = {(one.model, one.version) for one in aliases}
        versions = (
            WantedVersion(model, str(version), self.store.folder(digest), digest, loaded[model])
            for model, version, digest in digests
        )
        served = tuple(one for one in versions if (one.model, one.version) in named)
        return Wanted(revision, served, tuple(aliases), tuple(grants))

    def audit(self, limit: int, before: int | None) -> list[dict[str, Any]]:
        """The newest admin acts first."""
        return [one.model_dump() for one in read_audit(self.database, limit=limit, before=before)]


def check_names(names: Sequence[str], share: float) -> None:
    """ConfigError for a name that no alias can have, and for a share that it cannot have."""
    for name in names:
        if not _ALIAS.fullmatch(name):
            mend = "a letter or _, then letters, digits, _ . -, at most 64"
            raise ConfigError(f"'{name[:64]}' is no alias", mend=mend)
    if not 0 <= share <= 1:
        raise ConfigError(f"{share:g} is no share", mend="give a number from 0 to 1")
    if share and LATEST in names:
        raise ConfigError("'latest' takes what the shares leave", mend="give the share to another alias")
