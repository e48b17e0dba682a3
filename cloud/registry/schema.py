"""The registry's tables, as the newest migration leaves them."""

from __future__ import annotations

from sqlalchemy import ForeignKeyConstraint, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

HEAD = "0001"
"""The newest migration."""


class Base(DeclarativeBase):
    """Base of the tables. Times are Unix seconds in UTC."""


class StateRow(Base):
    """One row: a number that grows with every change, so that a service sees cheaply that there was one."""

    __tablename__ = "state"

    id: Mapped[int] = mapped_column(primary_key=True)
    revision: Mapped[int]


class ModelRow(Base):
    """A model. loaded: whether services serve it; newest: the last version number given, never given again."""

    __tablename__ = "models"

    name: Mapped[str] = mapped_column(primary_key=True)
    loaded: Mapped[bool]
    newest: Mapped[int]


class VersionRow(Base):
    """One registered bundle. digest: SHA-256 of its manifest, and its folder's name in the store."""

    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("model", "digest"),
        ForeignKeyConstraint(["model"], ["models.name"]),
    )

    model: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str]
    cut: Mapped[str]
    tokens: Mapped[int]
    run: Mapped[str]
    method: Mapped[str]
    created: Mapped[float]
    created_by: Mapped[str]


class AliasRow(Base):
    """A name for a version; one of each name for each cut contract. share: of the model's traffic of that cut."""

    __tablename__ = "aliases"
    __table_args__ = (ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.version"]),)

    model: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    cut: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int]
    share: Mapped[float]


class KeyRow(Base):
    """An API key. id: the first digits of its digest. Keys of one name are rotations of each other."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    digest: Mapped[str] = mapped_column(unique=True)
    scopes: Mapped[str]
    created: Mapped[float]
    expires: Mapped[float | None]
    rate: Mapped[float | None]
    inflight: Mapped[int | None]
    revoked: Mapped[float | None]


class AuditRow(Base):
    """One admin act. Triggers refuse to change or delete a row."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[float]
    who: Mapped[str]
    act: Mapped[str]
    subject: Mapped[str]
    detail: Mapped[str]
