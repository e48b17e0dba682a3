"""What the acts of the catalogue do to its tables, inside a transaction that writes."""

from __future__ import annotations

import time

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.engine import Connection

from harmony.cloud.lanes import Alias
from harmony.cloud.registry.audit import record
from harmony.cloud.registry.schema import AliasRow, ModelRow, VersionRow
from harmony.cloud.registry.store import Stored
from harmony.core.errors import ConfigError
from harmony.core.spec import Frozen


class Version(Frozen):
    """A registered bundle. created: Unix time; aliases: the names that it has."""

    model: str
    version: int
    digest: str
    cut: str
    tokens: int
    run: str
    method: str
    created: float
    created_by: str
    aliases: tuple[str, ...] = ()


def number(connection: Connection, stored: Stored, who: str) -> int:
    """The version number of a stored bundle: the next one of its model, or the one that it has."""
    manifest, model = stored.manifest, stored.manifest.model
    known = select(VersionRow.version).where(VersionRow.model == model, VersionRow.digest == stored.digest)
    if (found := connection.execute(known).scalar_one_or_none()) is not None:
        return found
    version = _next(connection, model)
    connection.execute(
        insert(VersionRow).values(
            model=model,
            version=version,
            digest=stored.digest,
            cut=str(manifest.feature),
            tokens=manifest.tokens,
            run=manifest.run,
            method=manifest.method,
            created=time.time(),
            created_by=who,
        )
    )
    record(connection, who, "version.register", f"{model}/{version}", digest=stored.digest, cut=str(manifest.feature))
    return version


def _next(connection: Connection, model: str) -> int:
    newest = connection.execute(select(ModelRow.newest).where(ModelRow.name == model)).scalar_one_or_none()
    if newest is None:
        connection.execute(insert(ModelRow).values(name=model, loaded=True, newest=1))
        return 1
    connection.execute(update(ModelRow).where(ModelRow.name == model).values(newest=newest + 1))
    return newest + 1


def point(connection: Connection, alias: Alias, who: str) -> None:
    """Set an alias. ConfigError if the shares of its model and cut would add up to more than 1."""
    here = (AliasRow.model == alias.model, AliasRow.cut == alias.cut)
    others = select(func.sum(AliasRow.share)).where(*here, AliasRow.name != alias.name)
    total = (connection.execute(others).scalar_one() or 0.0) + alias.share
    if total > 1 + 1e-9:
        raise ConfigError(f"the shares of '{alias.model}' would add up to {total:g}", mend="lower one of them first")
    connection.execute(delete(AliasRow).where(*here, AliasRow.name == alias.name))
    values = {"name": alias.name, "cut": alias.cut, "version": int(alias.version), "share": alias.share}
    connection.execute(insert(AliasRow).values(model=alias.model, **values))
    record(connection, who, "alias.set", f"{alias.model}@{alias.name}", **values)


def require(connection: Connection, model: str, version: int) -> str:
    """The cut contract of a version; ConfigError if it is not there."""
    query = select(VersionRow.cut).where(VersionRow.model == model, VersionRow.version == version)
    cut = connection.execute(query).scalar_one_or_none()
    if cut is None:
        raise unknown(model, version)
    return cut


def unknown(model: str, version: int) -> ConfigError:
    """There is no such version."""
    return ConfigError(f"the registry has no version {version} of '{model[:64]}'", mend="see 'harmony registry list'")


def versions(connection: Connection) -> list[Version]:
    """Every version with its names, by model, oldest first."""
    names: dict[tuple[str, str], list[str]] = {}
    for alias in aliases(connection):
        names.setdefault((alias.model, alias.version), []).append(alias.name)
    columns = (VersionRow.model, VersionRow.version, VersionRow.digest, VersionRow.cut, VersionRow.tokens)
    more = (VersionRow.run, VersionRow.method, VersionRow.created, VersionRow.created_by)
    query = select(*columns, *more).order_by(VersionRow.model, VersionRow.version)
    return [
        Version(**row._mapping, aliases=tuple(names.get((row.model, str(row.version)), ())))
        for row in connection.execute(query).all()
    ]


def aliases(connection: Connection) -> list[Alias]:
    """Every alias, by model, name and cut."""
    columns = (AliasRow.model, AliasRow.name, AliasRow.version, AliasRow.share, AliasRow.cut)
    query = select(*columns).order_by(AliasRow.model, AliasRow.name, AliasRow.cut)
    return [Alias(row.model, row.name, str(row.version), row.share, row.cut) for row in connection.execute(query).all()]
