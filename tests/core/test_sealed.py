"""Sealed folders: one changed byte anywhere is found, and every other damage has its name."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from pydantic import JsonValue, ValidationError

from harmony.core import sealed
from harmony.core.errors import ArtifactCorrupt, ArtifactError, ArtifactMissing, ArtifactTooNew, StorageError
from harmony.core.sealed import MANIFEST, SEAL, FileEntry, Manifest, read_manifest, require_files, seal, sealing, unseal


class Note(Manifest):
    FORMAT: ClassVar[str] = "note"
    VERSION: ClassVar[int] = 3

    format: Literal["note"] = "note"
    format_version: Literal[3] = 3
    text: str = "hello"
    extra: JsonValue = None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with sealing(tmp_path / "note") as draft:
        (draft / "a.bin").write_bytes(b"some bytes")
        (draft / "b.txt").write_bytes(b"")
        seal(draft, Note())
    return tmp_path / "note"


def write_manifest(folder: Path, text: bytes) -> None:
    """What somebody who knows the format can do: any manifest, with the right hash beside it."""
    (folder / MANIFEST).write_bytes(text)
    (folder / SEAL).write_text(f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n")


def edited(folder: Path, **change: Any) -> None:
    value = json.loads((folder / MANIFEST).read_bytes())
    write_manifest(folder, json.dumps(value | change).encode())


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything, so that permissions are tested as somebody else."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_what_was_sealed_is_read_back(folder: Path) -> None:
    manifest = unseal(folder, Note)
    assert manifest == read_manifest(folder, Note)
    assert manifest.text == "hello"
    assert manifest.files == {
        "a.bin": FileEntry(size=10, sha256=hashlib.sha256(b"some bytes").hexdigest()),
        "b.txt": FileEntry(size=0, sha256=hashlib.sha256(b"").hexdigest()),
    }
    assert sorted(path.name for path in folder.iterdir()) == ["a.bin", "b.txt", MANIFEST, SEAL]
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    (folder.with_name("link")).symlink_to(copy, target_is_directory=True)
    assert unseal(folder.with_name("link"), Note) == manifest, "a folder may be reached through a link"


def test_no_byte_of_any_file_can_change_unseen(folder: Path) -> None:
    for path in (folder / "a.bin", folder / MANIFEST, folder / SEAL):
        content = path.read_bytes()
        for position in range(len(content)):
            changed = bytearray(content)
            changed[position] ^= 1 << position % 8
            path.write_bytes(changed)
            with pytest.raises(ArtifactCorrupt, match="was changed after it was sealed"):
                unseal(folder, Note)
        path.write_bytes(content)
    unseal(folder, Note)


@pytest.mark.parametrize("name", ["a.bin", "b.txt", MANIFEST, SEAL])
def test_every_truncation_and_growth_is_found(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    for other in [content[:length] for length in range(len(content))] + [content + b"\n", content + content + b"x"]:
        (folder / name).write_bytes(other)
        with pytest.raises(ArtifactCorrupt, match=str(folder)):
            unseal(folder, Note)


def test_another_size_is_said_before_the_content_is_read(folder: Path) -> None:
    with (folder / "a.bin").open("r+b") as stream:
        stream.truncate(1 << 40)  # sparse: to hash it would take an hour
    with pytest.raises(ArtifactCorrupt, match=r"a\.bin: has 1099511627776 bytes, the manifest says 10"):
        unseal(folder, Note)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("name", ["a.bin", MANIFEST, SEAL])
@pytest.mark.parametrize("replace", [replace_by_folder, replace_by_link, replace_by_pipe])
def test_only_plain_files_count(folder: Path, name: str, replace: Callable[[Path], None]) -> None:
    replace(folder / name)
    with pytest.raises(ArtifactError, match=rf"{name}: .*plain file"):
        unseal(folder, Note)


@pytest.mark.parametrize("name", ["a.bin", "b.txt", MANIFEST, SEAL])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtifactMissing, match=rf"note/{name}: .*copy the folder again"):
        unseal(folder, Note)


@pytest.mark.parametrize("extra", ["c.bin", ".hidden", "folder/"])
def test_a_file_too_many_is_named(folder: Path, extra: str) -> None:
    (folder / extra).mkdir() if extra.endswith("/") else (folder / extra).write_bytes(b"")
    with pytest.raises(ArtifactCorrupt, match=rf"note/{extra.rstrip('/')}: the manifest does not name this file"):
        unseal(folder, Note)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "nothing", tmp_path / "file", tmp_path / ("x" * 300), tmp_path / "file/below"):
        with pytest.raises(ArtifactMissing, match=r"no note here|cannot be read"):
            unseal(path, Note)


@pytest.mark.parametrize("closed", [".", "a.bin", MANIFEST])
def test_what_may_not_be_read_is_named(folder: Path, closed: str) -> None:
    (folder / closed).chmod(0)
    try:
        with as_nobody(), pytest.raises(ArtifactMissing, match="cannot be read: Permission denied"):
            unseal(folder, Note)
    finally:
        (folder / closed).chmod(0o700)


@pytest.mark.parametrize("version", [4, 10**30])
def test_a_newer_version_asks_for_an_update(folder: Path, version: int) -> None:
    edited(folder, format_version=version, unheard_of=1)
    with pytest.raises(ArtifactTooNew, match=rf"{MANIFEST}: format_version: .*version {version}, .*update harmony"):
        unseal(folder, Note)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"format_version": 0}, "format_version"),
        ({"format_version": "4"}, "format_version"),
        ({"format_version": None}, "format_version"),
        ({"format_version": [5]}, "format_version"),
        ({"format": "other"}, "format"),
        ({"format": ["note"]}, "format"),
        ({"format": {"\x1b[2J": "\n"}}, "format"),
        ({"format": "x" * 1_000_000}, "format"),
        ({"text": 5}, "text"),
        ({"unknown": 5}, "unknown"),
        ({"x\n" * 100_000: 5}, "x x "),
        ({"files": []}, "files"),
        ({"files": {"a.bin": {"size": -1, "sha256": "0" * 64}}}, r"files\.a\.bin\.size"),
        ({"files": {"a.bin": {"size": 10, "sha256": "0" * 63}}}, r"files\.a\.bin\.sha256"),
        ({"files": {"a.bin": {"size": 10, "sha256": "0" * 64 + "\n"}}}, r"files\.a\.bin\.sha256"),
        ({"files": {"../note2/a.bin": {"size": 1, "sha256": "0" * 64}}}, "files"),
        ({"files": {"..": {"size": 1, "sha256": "0" * 64}}}, "files"),
        ({"files": {"": {"size": 1, "sha256": "0" * 64}}}, "files"),
        ({"files": {"/etc/passwd": {"size": 1, "sha256": "0" * 64}}}, "files"),
        ({"files": {"a\n": {"size": 1, "sha256": "0" * 64}}}, "files"),
    ],
)
def test_a_manifest_that_says_what_it_may_not(folder: Path, change: dict[str, Any], field: str) -> None:
    edited(folder, **change)
    with pytest.raises(ArtifactCorrupt, match=rf"{MANIFEST}: {field}") as caught:
        unseal(folder, Note)
    assert len(str(caught.value)) <= 2000
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b'"note"',
        b"{",
        b"\xff\xfe\xfd",
        b'{"format": "note"} and more',
        b'{"format": "note", "format_version": 3, "text": "half a character \\ud800"}',
        b'{"format": "note", "format_version": 3, "extra": NaN}',
        b'{"format": "note", "extra": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"format": "note", "format_version": 3, "extra": ' + b"9" * 5000 + b"}",
        b'{"format": "note", "format_version": 3, "extra": ' + b"[" * 900 + b"]" * 900 + b"}",
    ],
    ids=lambda text: f"{text[:20]!r}",
)
def test_a_manifest_that_is_no_json_object_or_has_no_end(folder: Path, text: bytes) -> None:
    write_manifest(folder, text)
    with pytest.raises(ArtifactCorrupt, match=MANIFEST):
        unseal(folder, Note)


def test_a_huge_manifest_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (folder / MANIFEST).open("r+b") as stream:
        stream.truncate(sealed.MAX_MANIFEST_BYTES + 1)  # sparse
    with pytest.raises(ArtifactCorrupt, match=rf"{MANIFEST}: is larger than"):
        unseal(folder, Note)
    with (folder / SEAL).open("r+b") as stream:
        stream.truncate(1 << 40)
    monkeypatch.setattr(sealed, "MAX_MANIFEST_BYTES", 2 << 30)
    (folder / MANIFEST).write_bytes(b"{}")
    with pytest.raises(ArtifactCorrupt, match=rf"{SEAL}: is larger than"):
        unseal(folder, Note)


def test_a_manifest_that_could_not_be_read_again_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed, "MAX_MANIFEST_BYTES", 50)
    with pytest.raises(StorageError, match=r"above the limit of 50"), sealing(tmp_path / "note") as draft:
        seal(draft, Note())
    assert list(tmp_path.iterdir()) == []


def test_a_file_name_that_could_not_be_read_again_is_not_sealed(tmp_path: Path) -> None:
    (tmp_path / ".hidden").write_text("x")
    with pytest.raises(ValidationError, match="pattern"):
        seal(tmp_path, Note())


def test_files_that_a_manifest_should_seal(folder: Path) -> None:
    manifest = unseal(folder, Note)
    require_files(manifest, {"a": "a.bin"}, folder)
    with pytest.raises(ArtifactCorrupt, match=r"note: b: names 'c\.bin', which is not among its files"):
        require_files(manifest, {"a": "a.bin", "b": "c.bin"}, folder)
