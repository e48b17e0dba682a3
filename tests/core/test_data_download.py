"""Downloads against a real HTTP server on this machine: whole, cut, resumed, refused, wrong."""

from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from harmony.core.data import NAMES, fashion, load
from harmony.core.data.download import fetch
from harmony.core.data.sources import SOURCES, Source
from harmony.core.errors import DataError, DownloadFailed, StorageError

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000).astype(np.uint8).tobytes()
FILE = Source(PurePosixPath("sub/file.bin"), "http://nowhere.invalid/file.bin", hashlib.md5(CONTENT).hexdigest())  # noqa: S324


@dataclass
class Site:
    """What the server holds and how it misbehaves; `asked` is the Range header of each request."""

    files: dict[str, bytes]
    url: str = ""
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    shift: int = 0
    asked: list[str | None] = field(default_factory=list)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(request.headers["Range"])
        body = self.files.get(request.path)
        status = self.statuses.pop(0) if self.statuses else 200 if body is not None else 404
        if status != 200 or body is None:
            request.send_error(status)
            return
        start = 0
        if self.ranges and self.asked[-1]:
            start = int(self.asked[-1].removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                request.send_error(416)
                return
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start + self.shift}-{len(body) - 1}/{len(body)}")
        else:
            request.send_response(200)
        request.send_header("Content-Length", str(len(body) - start))
        request.end_headers()
        sent = body[start:]
        request.wfile.write(sent[: self.cut_after.pop(0)] if self.cut_after else sent)


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site({"/sub/file.bin": CONTENT})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        site.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()


def get(site: Site, cache: Path, source: Source = FILE, attempts: int = 3) -> Path:
    return fetch(source, cache, mirror=site.url, attempts=attempts, first_wait=0.01)


def test_a_whole_download_reaches_its_place_and_reports(site: Site, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    path = fetch(FILE, tmp_path, mirror=f"{site.url}/", progress=lambda *report: seen.append(report))
    assert path == tmp_path / "sub/file.bin"
    assert path.read_bytes() == CONTENT
    assert seen[-1] == ("file.bin", 300_000, 300_000)
    assert [held for _, held, _ in seen] == sorted(held for _, held, _ in seen)
    assert [path.name for path in path.parent.iterdir()] == ["file.bin"]
    assert get(site, tmp_path) == path
    assert len(site.asked) == 1, "what is there is not asked for again"


def test_a_cut_connection_goes_on_where_it_stopped(site: Site, tmp_path: Path) -> None:
    site.cut_after = [100_000, 50_000]
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert site.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_what_is_held_stays_for_the_next_call(site: Site, tmp_path: Path) -> None:
    site.cut_after = [100_000]
    with pytest.raises(DownloadFailed, match=r"file\.bin: the download was cut.*go on where it stopped"):
        get(site, tmp_path, attempts=1)
    assert (tmp_path / "sub/file.bin.part").stat().st_size == 100_000
    assert not (tmp_path / "sub/file.bin").exists()
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert site.asked[-1] == "bytes=100000-"


def test_a_server_without_ranges_starts_anew(site: Site, tmp_path: Path) -> None:
    site.ranges, site.cut_after = False, [100_000]
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert len(site.asked) == 2


def test_a_server_that_sends_another_range_starts_anew(site: Site, tmp_path: Path) -> None:
    site.shift, site.cut_after = 7, [100_000]
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert site.asked == [None, "bytes=100000-", None]


def test_a_whole_part_file_is_only_checked(site: Site, tmp_path: Path) -> None:
    part = tmp_path / "sub/file.bin.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT)
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert not part.exists()


@pytest.mark.parametrize("held", [b"", b"other bytes", CONTENT + b"more"])
def test_a_wrong_checksum_deletes_the_file_and_names_both(site: Site, tmp_path: Path, held: bytes) -> None:
    part = tmp_path / "sub/file.bin.part"
    part.parent.mkdir()
    part.write_bytes(held)
    source = FILE if held else replace(FILE, algorithm="sha256", digest="0" * 64)
    with pytest.raises(DownloadFailed, match=rf"not the published {source.digest}; the file was deleted"):
        get(site, tmp_path, source)
    assert list(part.parent.iterdir()) == []
    assert get(site, tmp_path).read_bytes() == CONTENT, "the next call starts afresh"


def test_sha256_is_checked_where_it_is_published(site: Site, tmp_path: Path) -> None:
    source = replace(FILE, algorithm="sha256", digest=hashlib.sha256(CONTENT).hexdigest())
    assert get(site, tmp_path, source).exists()


def test_a_missing_file_is_named_and_asked_for_once(site: Site, tmp_path: Path) -> None:
    site.files.clear()
    with pytest.raises(DownloadFailed, match=rf"{site.url}/sub/file\.bin: the server answers 404"):
        get(site, tmp_path)
    assert len(site.asked) == 1


def test_a_busy_server_is_asked_again(site: Site, tmp_path: Path) -> None:
    site.statuses = [503, 429]
    assert get(site, tmp_path).read_bytes() == CONTENT
    site.statuses = [503] * 3
    with pytest.raises(DownloadFailed, match="answers 503"):
        get(site, tmp_path / "other")


def test_more_bytes_than_promised_are_refused(site: Site, tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match="sends more than 1000 bytes"):
        get(site, tmp_path, replace(FILE, max_bytes=1000))
    assert not (tmp_path / "sub/file.bin").exists()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "ftp://127.0.0.1", "http://[bad", "no url"])
def test_no_answer_is_a_named_error(tmp_path: Path, url: str) -> None:
    with pytest.raises(DownloadFailed, match=r"HARMONY_DATA_MIRROR"):
        fetch(FILE, tmp_path, mirror=url, attempts=2, first_wait=0.01)


def test_a_cache_that_cannot_be_written_is_a_storage_error(site: Site, tmp_path: Path) -> None:
    (tmp_path / "sub").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match=r"cannot be written.*HARMONY_CACHE"):
        get(site, tmp_path)


def test_a_full_disk_is_a_storage_error(site: Site, tmp_path: Path) -> None:
    full = tmp_path / "sub/file.bin.part"
    full.parent.mkdir()
    full.symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left on device"):
        get(site, tmp_path)


def test_load_downloads_from_a_mirror(
    site: Site, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = (np.arange(20) % 10).astype(np.uint8)
    head, images = b"\0\0\x08\x01\0\0\0\x14", b"\0\0\x08\x03\0\0\0\x14\0\0\0\x02\0\0\0\x02" + bytes(80)
    sources = []
    for source in SOURCES["fashion-mnist"]:
        data = gzip.compress(images if "images" in source.path.name else head + labels.tobytes())
        site.files[f"/{source.path}"] = data
        sources.append(replace(source, digest=hashlib.md5(data).hexdigest()))  # noqa: S324
    monkeypatch.setattr(fashion, "SYSTEM", tmp_path)
    monkeypatch.setenv("HARMONY_DATA_MIRROR", site.url)
    with pytest.raises(DownloadFailed, match="not the published"):
        load("fashion-mnist", download=True)
    monkeypatch.setitem(SOURCES, "fashion-mnist", tuple(sources))
    assert len(load("fashion-mnist", download=True).y_train) == 20
    assert len(load("fashion-mnist").y_train) == 20
    assert (own_cache / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz").exists()


def test_every_named_source_has_a_checksum_and_a_place() -> None:
    for name, sources in SOURCES.items():
        assert name in NAMES
        for source in sources:
            assert source.url.endswith(source.path.name)
            assert len(source.digest) == {"md5": 32, "sha256": 64}[source.algorithm]
            assert source.url_at("http://m/") == f"http://m/{source.path}"
    assert issubclass(DownloadFailed, DataError)
