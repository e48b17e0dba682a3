"""The cache folder: where it is."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

CACHE_MEND = "free some space, or set HARMONY_CACHE to a folder that can be written"


def cache_dir() -> Path:
    """The folder for downloads: $HARMONY_CACHE, or the platform's own cache folder for `harmony-sfl`."""
    given = os.environ.get("HARMONY_CACHE")
    return Path(given).expanduser() if given else platformdirs.user_cache_path("harmony-sfl")
