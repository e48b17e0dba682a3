"""The cache folder: where it is. No torch."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

CACHE_MEND = "free some space, or set HARMONY_CACHE to a folder that can be written"


def cache_dir() -> Path:
    """The folder for what is downloaded or built on demand: $HARMONY_CACHE, or the platform's for `harmony-sfl`."""
    given = os.environ.get("HARMONY_CACHE")
    return Path(given).expanduser() if given else platformdirs.user_cache_path("harmony-sfl")
