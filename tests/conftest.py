"""What every test gets: a cache folder of its own, so that no test reads or fills the user's."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("HARMONY_CACHE", str(cache))
    monkeypatch.delenv("HARMONY_DATA_MIRROR", raising=False)
    return cache
