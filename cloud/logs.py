"""Structured logs: one JSON object a line on stderr. Never a key, never a body."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from harmony.core.errors import ConfigError

LEVELS = ("debug", "info", "warning", "error")
_FIELDS = ("id", "caller", "model", "version", "path", "status", "reason", "error", "url", "rows", "seconds")


class JsonLines(logging.Formatter):
    """time, level, logger, event, and the fields that the call gave in `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up_logs(level: str) -> None:
    """Log to stderr from `level` on. What strangers can provoke (uvicorn's warnings) shows from info on only."""
    if level not in LEVELS:
        raise ConfigError(f"'{level}' is no log level", where="--log-level", mend=f"choose one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    quiet = "error" if level == "warning" else level
    for name, threshold in (("harmony.cloud", level), ("uvicorn", quiet), ("asyncio", quiet)):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(threshold.upper())
        logger.propagate = False
