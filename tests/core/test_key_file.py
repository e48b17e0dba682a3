"""Secret files: nobody else reads them, none is overwritten, and nothing odd in their place is trusted or awaited."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from harmony.core.errors import ConfigError, StorageError
from harmony.core.key_file import MAX_BYTES, read_secret, write_secret


def test_what_was_written_is_read_and_only_the_owner_may(tmp_path: Path) -> None:
    path = tmp_path / "new" / "secret"
    before = os.umask(0)
    try:
        write_secret(path, b"hush")
    finally:
        os.umask(before)
    assert read_secret(path) == b"hush"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_is_overwritten_not_even_a_dangling_link(tmp_path: Path) -> None:
    path, link = tmp_path / "secret", tmp_path / "link"
    write_secret(path, b"first")
    link.symlink_to(tmp_path / "nowhere")
    for taken in (path, link):
        with pytest.raises(ConfigError, match="is there already, and no key is overwritten"):
            write_secret(taken, b"second")
    assert path.read_bytes() == b"first"
    assert not (tmp_path / "nowhere").exists()


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        write_secret(tmp_path / "secret", b"x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_that_others_may_read_is_refused(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    write_secret(path, b"x")
    path.chmod(mode)
    with pytest.raises(ConfigError, match=r"may be read by others \(chmod 600"):
        read_secret(path)


@pytest.mark.parametrize("odd", ["missing", "folder", "pipe", "large"])
def test_what_is_no_secret_file_is_named(odd: str, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    if odd == "folder":
        path.mkdir()
    if odd == "pipe":
        os.mkfifo(path)
    if odd == "large":
        write_secret(path, b"x" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match=r"secret: (cannot be read|is not a plain file|is larger)"):
        read_secret(path)
