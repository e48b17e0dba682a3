"""CIFAR's binary layout and its archive, with few records in the official form."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from harmony.core.data import load
from harmony.core.data.bounded import Limits
from harmony.core.data.cifar import CIFAR10, CIFAR100, Layout, find_cifar, load_cifar, unpack
from harmony.core.errors import DataForeign, DataMissing, LabelOutOfRange, StorageError

PIXELS = 3 * 32 * 32


def records(layout: Layout, labels: range) -> bytes:
    rows = np.random.default_rng(len(labels)).integers(0, 256, (len(labels), layout.label_bytes + PIXELS))
    rows[:, :-PIXELS] = 3  # coarse labels are not looked at
    rows[:, layout.label_bytes - 1] = labels
    return rows.astype(np.uint8).tobytes()


def contents(layout: Layout) -> dict[str, bytes]:
    share = layout.classes // len(layout.train)
    files = {
        name: records(layout, range(number * share, (number + 1) * share)) for number, name in enumerate(layout.train)
    }
    names = "".join(f"name {label}\n" for label in range(layout.classes)) + "\n"
    return files | {layout.test: records(layout, range(layout.classes)), layout.names: names.encode()}


def write_set(layout: Layout, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents(layout).items():
        (folder / name).write_bytes(data)
    return folder


def write_archive(layout: Layout, place: Path, *more: tuple[tarfile.TarInfo, bytes], leave_out: str = "") -> Path:
    members = [(name, data) for name, data in contents(layout).items() if name != leave_out]
    path = place / layout.archive
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, data in members:
            member = tarfile.TarInfo(f"{layout.folder}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for member, data in more:
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("layout", [CIFAR10, CIFAR100], ids=lambda layout: layout.name)
@pytest.mark.parametrize("flat", [True, False])
def test_official_binary_layout_loads(tmp_path: Path, layout: Layout, flat: bool) -> None:
    write_set(layout, tmp_path if flat else tmp_path / layout.folder)
    data = load(layout.name, data_dir=tmp_path)
    assert data.x_train.shape == (layout.classes, 32, 32, 3)
    assert data.y_train.tolist() == list(range(layout.classes)), "files in order, fine labels"
    assert data.class_names[-1] == f"name {layout.classes - 1}"


def test_planes_become_channels(tmp_path: Path) -> None:
    write_set(CIFAR100, tmp_path)
    rows = np.frombuffer((tmp_path / "test.bin").read_bytes(), np.uint8).reshape(-1, 3074)
    image = load_cifar(CIFAR100, tmp_path).x_test[5]
    for channel in range(3):
        plane = rows[5, 2 + 1024 * channel : 2 + 1024 * (channel + 1)].reshape(32, 32)
        np.testing.assert_array_equal(image[..., channel], plane)


def test_nothing_there_names_places_and_files(own_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=rf"{tmp_path}, {own_cache}; needs data_batch_1\.bin.*--download"):
        load("cifar10", data_dir=tmp_path)
    with pytest.raises(DataMissing, match=r"no such folder.*--data-dir"):
        load("cifar10", data_dir=tmp_path / "none")


@pytest.mark.parametrize("content", [b"", bytes(3072), bytes(3073 * 2 - 1)])
def test_truncated_or_foreign_files_are_named(tmp_path: Path, content: bytes) -> None:
    write_set(CIFAR10, tmp_path)
    (tmp_path / "data_batch_3.bin").write_bytes(content)
    with pytest.raises(DataForeign, match=r"data_batch_3\.bin: \d+ bytes are not a whole number of 3073-byte records"):
        load_cifar(CIFAR10, tmp_path)


def test_a_label_out_of_range_names_its_own_file(tmp_path: Path) -> None:
    write_set(CIFAR10, tmp_path)
    path = tmp_path / "data_batch_2.bin"
    rows = bytearray(path.read_bytes())
    rows[3073] = 10
    path.write_bytes(rows)
    with pytest.raises(LabelOutOfRange, match=r"data_batch_2\.bin: label 10 of image 1 is outside 0 … 9"):
        load_cifar(CIFAR10, tmp_path)


def test_class_names_must_be_as_many_as_classes(tmp_path: Path) -> None:
    write_set(CIFAR10, tmp_path)
    (tmp_path / "batches.meta.txt").write_text("cat\ndog\n")
    with pytest.raises(DataForeign, match="2 class names, not 10"):
        load_cifar(CIFAR10, tmp_path)


def test_files_above_the_limit_are_not_read(tmp_path: Path) -> None:
    write_set(CIFAR10, tmp_path)
    with pytest.raises(DataForeign, match=r"data_batch_1\.bin: 6146 bytes, above the limit of 5000"):
        load_cifar(CIFAR10, tmp_path, Limits(file_bytes=5000))


def test_the_archive_is_unpacked_where_it_lies(own_cache: Path) -> None:
    write_archive(CIFAR10, own_cache)
    assert len(load("cifar10").y_train) == 10
    assert sorted(path.name for path in (own_cache / CIFAR10.folder).iterdir()) == sorted(CIFAR10.files)
    (own_cache / CIFAR10.archive).unlink()
    assert len(load("cifar10").y_train) == 10, "the second time it is there"


def test_other_members_never_reach_the_disk(tmp_path: Path) -> None:
    link = tarfile.TarInfo(f"{CIFAR10.folder}/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    more = [(tarfile.TarInfo(name), b"") for name in ("../evil", "/evil", f"{CIFAR10.folder}/../../evil", "evil")]
    place = tmp_path / "in" / "here"
    place.mkdir(parents=True)
    folder = unpack(CIFAR10, write_archive(CIFAR10, place, (link, b""), *more))
    assert sorted(path.name for path in folder.iterdir()) == sorted(CIFAR10.files)
    everything = {path.name for path in tmp_path.rglob("*")}
    assert everything == {"in", "here", CIFAR10.archive, CIFAR10.folder, *CIFAR10.files}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_an_expected_name_that_is_no_regular_file_is_refused(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo(f"{CIFAR10.folder}/test_batch.bin")
    member.type, member.linkname = kind, f"{CIFAR10.folder}/data_batch_1.bin"
    path = write_archive(CIFAR10, tmp_path, (member, b""), leave_out="test_batch.bin")
    with pytest.raises(DataForeign, match=r"test_batch\.bin' is not a regular file"):
        unpack(CIFAR10, path)
    assert not (tmp_path / CIFAR10.folder).exists()


def test_too_many_or_too_large_members_are_refused(tmp_path: Path) -> None:
    path = write_archive(CIFAR10, tmp_path, *((tarfile.TarInfo(f"more{n}"), b"") for n in range(70)))
    with pytest.raises(DataForeign, match="one too many or too large"):
        unpack(CIFAR10, path)
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo(f"{CIFAR10.folder}/test_batch.bin")
        member.size = 1 << 40
        tar.fileobj.write(member.tobuf())
    with pytest.raises(DataForeign, match="one too many or too large"):
        unpack(CIFAR10, path)


def test_damaged_archives_leave_nothing_behind(tmp_path: Path) -> None:
    path = write_archive(CIFAR10, tmp_path)
    whole = path.read_bytes()
    for damaged in (whole[:-2000], whole[:20000] + b"\xff" * 30 + whole[20030:], b"no archive", b""):
        path.write_bytes(damaged)
        with pytest.raises(DataForeign, match=rf"{CIFAR10.archive}.*download the official archive again"):
            find_cifar(CIFAR10, tmp_path)
        assert not (tmp_path / CIFAR10.folder).exists()


def test_an_archive_that_lacks_a_file_is_named(tmp_path: Path) -> None:
    path = write_archive(CIFAR100, tmp_path, leave_out="test.bin")
    with pytest.raises(DataForeign, match=r"lacks test\.bin"):
        unpack(CIFAR100, path)


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    path = write_archive(CIFAR100, tmp_path)
    (tmp_path / CIFAR100.folder).write_text("a file where the folder should be")
    with pytest.raises(StorageError, match=rf"{CIFAR100.folder}.*cannot be written"):
        unpack(CIFAR100, path)
