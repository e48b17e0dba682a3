"""Who did what, and when. Rows are added inside the transaction of the act itself: no act without its row."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.engine import Connection

from harmony.cloud.registry.database import Database
from harmony.cloud.registry.schema import AuditRow
from harmony.core.spec import Frozen

_LONGEST = 200


class AuditEntry(Frozen):
    """One act. at: ISO 8601, UTC; who: `cli:USER` or `key:NAME`; act: for example `version.register`."""

    id: int
    at: str
    who: str
    act: str
    subject: str
    detail: dict[str, Any]


def record(connection: Connection, who: str, act: str, subject: str, **detail: Any) -> None:
    """Add a row to the transaction."""
    row = {"at": time.time(), "who": who[:_LONGEST], "act": act, "subject": subject[:_LONGEST]}
    connection.execute(insert(AuditRow).values(**row, detail=json.dumps(detail)))


def read_audit(database: Database, *, limit: int = 100, before: int | None = None) -> list[AuditEntry]:
    """The newest `limit` acts first; before: those with a smaller id."""
    query = select(AuditRow.id, AuditRow.at, AuditRow.who, AuditRow.act, AuditRow.subject, AuditRow.detail)
    if before is not None:
        query = query.where(AuditRow.id < before)
    with database.reading() as connection:
        rows = connection.execute(query.order_by(AuditRow.id.desc()).limit(limit)).all()
    return [
        AuditEntry(
            id=row.id,
            at=iso(row.at),
            who=row.who,
            act=row.act,
            subject=row.subject,
            detail=json.loads(row.detail),
        )
        for row in rows
    ]


def iso(seconds: float) -> str:
    """A Unix time as ISO 8601, UTC, to the second."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
