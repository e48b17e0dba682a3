"""Writes: whole or not there, whatever the disk, a signal or a second writer does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from harmony.core.errors import RunExists, StorageError
from harmony.core.storage import sealing, storing, write_atomically

DYING = """
import os, signal, sys
from pathlib import Path
from harmony.core.storage import sealing, write_atomically
with sealing(Path(sys.argv[1])) as draft:
    (draft / "file").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
FULL = """
import resource, sys
from pathlib import Path
from harmony.core.errors import StorageError
from harmony.core.storage import sealing, write_atomically
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
target = Path(sys.argv[1])
try:
    if target.is_file():
        write_atomically(target, b"new" * 1000)
    with sealing(target) as draft:
        (draft / "file").write_bytes(b"x" * 2000)
except StorageError as error:
    print(error)
"""
RACING = """
import sys
from pathlib import Path
from harmony.core.errors import HarmonyError
from harmony.core.storage import sealing
try:
    with sealing(Path(sys.argv[1])) as draft:
        (draft / "file").write_text(sys.argv[2])
        print("ready", flush=True)
        sys.stdin.readline()
    print("won")
except HarmonyError as error:
    print(type(error).__name__, error)
"""


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_with_all_that_was_written(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a[*]folder"
    with sealing(target) as draft:
        (draft / "file").write_text("x")
        (draft / "sub").mkdir()
        (draft / "sub" / "more").write_text("y")
        assert not target.exists()
        assert draft.parent == target.parent, "on the same file system"
    assert names(target) == ["file", "sub"]
    assert names(target.parent) == ["a[*]folder"]


def test_a_block_that_raises_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), sealing(tmp_path / "a") as draft:
        (draft / "file").write_text("x")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_a_kill_leaves_no_folder_and_the_next_writer_clears_up(tmp_path: Path) -> None:
    target = tmp_path / "a[1]"
    assert python(DYING, target).returncode == -signal.SIGKILL
    assert not target.exists()
    assert len(names(tmp_path)) == 1, "the draft of the dead"
    with sealing(target) as draft:
        (draft / "file").write_text("whole")
    assert names(tmp_path) == ["a[1]"]


def test_the_draft_of_an_earlier_process_of_the_same_number_is_cleared(tmp_path: Path) -> None:
    """A container that is killed and started again counts its processes from the same one."""
    for name in (f".a.{os.getpid()}-00000000-1.part", f".a.{os.getpid()}-00000000-{threading.get_ident()}.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("old")
    (tmp_path / f".b.{os.getpid()}-00000000-1.part").write_text("old")
    with sealing(tmp_path / "a") as draft:
        assert names(draft) == []
    write_atomically(tmp_path / "b", b"new")
    assert names(tmp_path) == ["a", "b"]


def test_what_is_no_draft_of_ours_stays(tmp_path: Path) -> None:
    living = f".a.{os.getppid()}-00000000-1.part"
    others = [
        living,
        ".a.notes.part",
        ".a.b.1-00000000-1.part",
        ".a.99999999999999999999-00000000-1.part",
        ".ab.1.part",
    ]
    for name in others:
        (tmp_path / name).mkdir()
    with sealing(tmp_path / "a"):
        pass
    assert names(tmp_path) == sorted([*others, "a"])


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_what_is_there_is_never_replaced(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "a"
    if kind == "folder":
        target.mkdir()
    else:
        target.touch() if kind == "file" else target.symlink_to("nowhere")
    with pytest.raises(RunExists, match=r"a: this (file|folder) is there already \(choose another"), sealing(target):
        pytest.fail("should not begin")
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("kind", ["full folder", "file"])
def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "a"
    with pytest.raises(RunExists, match="there already"), sealing(target) as draft:
        (draft / "file").write_text("mine")
        if kind == "file":
            target.write_text("theirs")
        else:
            target.mkdir()
            (target / "file").write_text("theirs")
    assert (target if kind == "file" else target / "file").read_text() == "theirs"
    assert names(tmp_path) == ["a"]


def test_of_two_processes_one_wins_and_the_other_says_so(tmp_path: Path) -> None:
    target = tmp_path / "a"
    command = [sys.executable, "-c", RACING, str(target)]
    racers = [
        subprocess.Popen([*command, text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for text in "xy"
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n", "both are at work at once"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    said = [racer.communicate()[0] for racer in racers]
    assert sorted(one.split()[0] for one in said) == ["RunExists", "won"]
    assert (target / "file").read_text() == "xy"[said.index("won\n")]
    assert names(tmp_path) == ["a"]


def test_two_threads_do_not_share_a_draft(tmp_path: Path) -> None:
    barrier, ends = threading.Barrier(2, timeout=20), list[str]()

    def write(text: str) -> None:
        try:
            with sealing(tmp_path / "a") as draft:
                (draft / "file").write_text(text)
                barrier.wait()
            ends.append(text)
        except RunExists:
            ends.append("lost")

    threads = [threading.Thread(target=write, args=(text,)) for text in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "lost" in ends
    (winner,) = set(ends) - {"lost"}
    assert (tmp_path / "a/file").read_text() == winner


def test_threads_that_replace_a_file_leave_one_of_their_contents(tmp_path: Path) -> None:
    target = tmp_path / "file"
    contents = [bytes([65 + index]) * 5000 for index in range(8)]
    failures = list[Exception]()

    def write(content: bytes) -> None:
        try:
            for _ in range(5):
                write_atomically(target, content)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert target.read_bytes() in contents
    assert names(tmp_path) == ["file"]


def test_a_file_is_replaced_and_its_folders_made(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file"
    for content in (b"old", b"", b"new"):
        write_atomically(target, content)
        assert target.read_bytes() == content
    assert names(target.parent) == ["file"]


def test_a_disk_that_is_full_keeps_the_old_file(tmp_path: Path) -> None:
    """A limit of the file size stands for the full disk: the write itself fails half-way."""
    target = tmp_path / "file"
    target.write_bytes(b"old")
    done = python(FULL, target)
    assert done.stdout == f"{target}: cannot be written: File too large (free some space or choose another folder)\n"
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_disk_that_is_full_leaves_no_folder(tmp_path: Path) -> None:
    done = python(FULL, tmp_path / "a")
    assert f"{tmp_path}/a: cannot be written: File too large" in done.stdout, done.stderr
    assert names(tmp_path) == []


def test_a_failing_sync_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=r"No space left on device \(buy a disk\)"):
        write_atomically(tmp_path / "file", b"new", "buy a disk")
    with pytest.raises(StorageError, match="No space left"), sealing(tmp_path / "a") as draft:
        (draft / "x").touch()
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(0o500)
    root = os.geteuid() == 0
    try:
        if root:  # who may write everywhere
            os.seteuid(65534)
        with pytest.raises(StorageError, match="cannot be written: Permission denied"):
            write_atomically(closed / "file", b"x")
        with pytest.raises(StorageError, match="cannot be written: Permission denied"), sealing(closed / "a"):
            pytest.fail("should not begin")
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("name", ["file/a", "file/a/b", "x" * 300, "loop/a"])
def test_places_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StorageError, match="cannot be written"):
        write_atomically(tmp_path / name, b"x")
    with pytest.raises(StorageError, match="cannot be written"), sealing(tmp_path / name):
        pytest.fail("should not begin")


def test_a_folder_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path / "folder", Path()):
        with pytest.raises(StorageError, match="cannot be written"):
            write_atomically(place, b"x")
    assert names(tmp_path) == ["folder"]


def test_other_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError), storing(tmp_path):
        raise ConnectionResetError(104, "Connection reset by peer")
    with pytest.raises(ValueError, match="mine"), sealing(tmp_path / "a"):
        raise ValueError("mine")
    assert names(tmp_path) == []
