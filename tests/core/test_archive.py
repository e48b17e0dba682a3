"""Bundles as .tar: one form only, read by every tar program, written by none but ours, and never outside its folder."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harmony.core import archive
from harmony.core.archive import Archive, pack, packing, unpack
from harmony.core.errors import ArtifactCorrupt, ArtifactError, ArtifactMissing, RunExists, StorageError
from harmony.core.sealed import MANIFEST, SEAL, Manifest, read_sealed, seal, sealing, unseal


class Note(Manifest):
    FORMAT: ClassVar[str] = "note"
    VERSION: ClassVar[int] = 1

    format: Literal["note"] = "note"
    format_version: Literal[1] = 1


CONTENT = {"zebra.bin": b"z" * 1000, "a.bin": b"some bytes", "empty": b"", "full": b"f" * 512, "m.json": b"{}"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with sealing(tmp_path / "note") as draft:
        for name, content in CONTENT.items():
            (draft / name).write_bytes(content)
        seal(draft, Note())
    return tmp_path / "note"


@pytest.fixture
def tar(folder: Path) -> Path:
    pack(folder, folder.with_suffix(".tar"))
    return folder.with_suffix(".tar")


def test_a_tar_is_read_as_the_folder_is(folder: Path, tar: Path) -> None:
    manifest = unseal(tar, Note)
    assert manifest == unseal(folder, Note)
    for name, content in CONTENT.items():
        assert read_sealed(tar, manifest, name) == content
    files = Archive(tar)
    assert files.names() == {*CONTENT, MANIFEST, SEAL}
    assert (files.size("zebra.bin"), files.size("gone")) == (1000, None)
    with files.open("zebra.bin") as part:
        assert (part.read(3), part.read(), part.read()) == (b"zzz", b"z" * 997, b"")


def test_unpacked_it_is_the_folder_again(folder: Path, tar: Path, tmp_path: Path) -> None:
    unpack(tar, tmp_path / "again")
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    pack(tmp_path / "again", tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == tar.read_bytes()


def test_the_bytes_depend_on_nothing_but_the_content(folder: Path, tar: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "other-name"
    copy.mkdir(parents=True)
    for path in sorted(folder.iterdir(), reverse=True):
        shutil.copyfile(path, copy / path.name)
        (copy / path.name).chmod(0o600)
        os.utime(copy / path.name, (1e9, 1e9))
    pack(copy, copy.with_suffix(".tar"))
    assert copy.with_suffix(".tar").read_bytes() == tar.read_bytes()


def test_other_programs_read_it(folder: Path, tar: Path, tmp_path: Path) -> None:
    with tarfile.open(tar) as opened:
        members = opened.getmembers()
        assert [one.name for one in members] == [MANIFEST, SEAL, "a.bin", "empty", "full", "m.json", "zebra.bin"]
        for one in members:
            assert (one.mtime, one.uid, one.gid, one.uname, one.gname, one.mode) == (0, 0, 0, "", "", 0o644)
            stream = opened.extractfile(one)
            assert stream is not None
            assert stream.read() == (folder / one.name).read_bytes()
    (tmp_path / "out").mkdir()
    done = subprocess.run(["tar", "-xf", tar, "-C", tmp_path / "out"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert unseal(tmp_path / "out", Note) == unseal(folder, Note)


def test_every_changed_byte_is_found(tar: Path) -> None:
    content = tar.read_bytes()
    for position in range(0, len(content), 13):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        tar.write_bytes(changed)
        with pytest.raises(ArtifactError, match=r"note\.tar"):
            unseal(tar, Note)


def test_every_truncation_and_growth_is_found(tar: Path) -> None:
    content = tar.read_bytes()
    cuts = [content[:length] for length in range(0, len(content), 97)]
    for other in [*cuts, content[:-1], content[:-512], content + b"\0", content + bytes(512), content + content]:
        tar.write_bytes(other)
        with pytest.raises(ArtifactCorrupt, match=r"note\.tar"):
            unseal(tar, Note)


def _with(tar: Path, change: Callable[[tarfile.TarInfo], None], name: str = "a.bin") -> None:
    """Write the archive again by Python's tarfile, with one header changed."""
    with tarfile.open(tar) as opened:
        entries = [(one, opened.extractfile(one).read()) for one in opened.getmembers()]  # type: ignore[union-attr]
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT, bufsize=512) as out:
        for info, content in entries:
            if info.name == name:
                change(info)
            out.addfile(info, io.BytesIO(content))


def _kind(kind: bytes, link: str = "") -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname, info.size = kind, link, 0

    return change


def _set(**values: object) -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        for name, value in values.items():
            setattr(info, name, value)

    return change


HOSTILE: dict[str, tuple[Callable[[tarfile.TarInfo], None], str]] = {
    "a link": (_kind(tarfile.SYMTYPE, "/etc/passwd"), "'a.bin' is a link"),
    "a hard link": (_kind(tarfile.LNKTYPE, "manifest.json"), "'a.bin' is a link"),
    "a device": (_kind(tarfile.CHRTYPE), "'a.bin' is a device"),
    "a pipe": (_kind(tarfile.FIFOTYPE), "'a.bin' is a pipe"),
    "a folder": (_kind(tarfile.DIRTYPE), "is a folder"),
    "above": (_set(name="../a.bin"), "'../a.bin' has a header that no bundle has"),
    "absolute": (_set(name="/tmp/a.bin"), "'/tmp/a.bin' has a header"),  # noqa: S108
    "below": (_set(name="x/a.bin"), "'x/a.bin' has a header"),
    "a dot": (_set(name="./a.bin"), "'./a.bin' has a header"),
    "hidden": (_set(name=".a.bin"), "'.a.bin' has a header"),
    "dots": (_set(name=".."), "'..' has a header"),
    "empty": (_set(name=""), "'' has a header"),
    "a terminal code": (_set(name="a\x1b[2J"), "has a header"),
    "twice": (_set(name="manifest.json"), "manifest.json: stands twice, or not in its place"),
    "out of order": (_set(name="zz.bin"), "empty: stands twice, or not in its place"),
    "a time": (_set(mtime=1), "has a header"),
    "an owner": (_set(uid=1000), "has a header"),
    "a name of the owner": (_set(uname="root"), "has a header"),
    "another mode": (_set(mode=0o4755), "has a header"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_another_program_could_have_written(what: str, tar: Path, tmp_path: Path) -> None:
    change, words = HOSTILE[what]
    _with(tar, change)
    before = sorted(tmp_path.rglob("*"))
    for act in (lambda: unseal(tar, Note), lambda: unpack(tar, tmp_path / "out")):
        with pytest.raises(ArtifactCorrupt, match=r"note\.tar.*") as refused:
            act()
        assert words in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_extras_of_other_formats(format_: int, tar: Path) -> None:
    info = tarfile.TarInfo("manifest.json" + "x" * 200)
    with tarfile.open(tar, "w", format=format_) as out:
        out.addfile(info, io.BytesIO())
    with pytest.raises(ArtifactCorrupt, match=r"header that no bundle has|no tar of the form"):
        unseal(tar, Note)


def test_a_size_that_lies(tar: Path, tmp_path: Path) -> None:
    """More than the archive has, and more than there may be: refused by the header, before anything is read."""
    content = bytearray(tar.read_bytes())
    start = content.rindex(b"zebra.bin")
    content[start : start + 512] = archive._header(b"zebra.bin", 8**11 - 1)
    tar.write_bytes(content)
    with pytest.raises(ArtifactCorrupt, match=r"zebra\.bin: is cut short"):
        unpack(tar, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_limits(tar: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_FILES", 7)
    unpack(tar, tmp_path / "seven")
    monkeypatch.setattr(archive, "MAX_FILES", 6)
    with pytest.raises(ArtifactCorrupt, match="more than 6 files"):
        unpack(tar, tmp_path / "six")
    monkeypatch.setattr(archive, "MAX_BYTES", 4000)
    with pytest.raises(ArtifactCorrupt, match="larger than 4000"):
        unpack(tar, tmp_path / "large")
    with pytest.raises(StorageError, match=r"has no place in a \.tar"):
        pack(folder, tmp_path / "large.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["note", "note.tar", "seven"]


@pytest.mark.parametrize("name", ["sub", "x" * 100, "ü", ".hidden"])
def test_what_has_no_place_in_it(name: str, folder: Path) -> None:
    (folder / name).mkdir() if name == "sub" else (folder / name).write_text("x")
    with pytest.raises(StorageError, match=r"has no place in a \.tar"):
        pack(folder, folder.with_suffix(".tar"))
    assert [path.name for path in folder.parent.iterdir()] == ["note"]


def test_nothing_is_overwritten(folder: Path, tar: Path) -> None:
    content = tar.read_bytes()
    with pytest.raises(RunExists, match=r"note\.tar: this file is there already"):
        pack(folder, tar)
    with pytest.raises(RunExists, match="note: this folder is there already"):
        unpack(tar, folder)
    with pytest.raises(RunExists), packing(tar):
        pass
    assert tar.read_bytes() == content


def test_packing_leaves_a_whole_file_or_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), packing(tmp_path / "new" / "note.tar") as draft:
        (draft / "a.bin").write_bytes(b"x")
        raise KeyError
    assert list((tmp_path / "new").iterdir()) == []
    with packing(tmp_path / "new" / "note.tar") as draft:
        (draft / "a.bin").write_bytes(b"x")
        seal(draft, Note())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["note.tar"]
    unseal(tmp_path / "new" / "note.tar", Note)


def test_no_archive_at_all(tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("hello")
    (tmp_path / "empty.tar").write_text("")
    os.mkfifo(tmp_path / "pipe.tar")
    for name in ("text.tar", "empty.tar"):
        with pytest.raises(ArtifactCorrupt, match=rf"{name}.*harmony bundle pack"):
            unseal(tmp_path / name, Note)
    for name in ("gone.tar", "pipe.tar"):
        with pytest.raises(ArtifactMissing, match=name):
            unseal(tmp_path / name, Note)
        with pytest.raises(ArtifactMissing, match=name):
            unpack(tmp_path / name, tmp_path / "out")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_noise_is_named(data: st.DataObject, tmp_path: Path) -> None:
    """Blocks of zeros, right and wrong headers and noise, in any order."""
    headers = st.builds(
        archive._header,
        st.sampled_from([b"manifest.json", b"a", b"b", b"..", b"/x"]),
        st.sampled_from([0, 1, 512, 9**9]),
    )
    blocks = st.lists(st.one_of(headers, st.just(bytes(512)), st.binary(max_size=600)), max_size=8)
    path = tmp_path / "noise.tar"
    path.write_bytes(b"".join(data.draw(blocks)))
    with pytest.raises(ArtifactError, match=r"noise\.tar"):
        unseal(path, Note)
