"""Downloads: resumed where they were cut, bounded, and renamed into place only with the right checksum."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO

import httpx2
import stamina

from harmony.core.cache import CACHE_MEND
from harmony.core.data.sources import Source
from harmony.core.errors import DownloadFailed
from harmony.core.storage import storing

Progress = Callable[[str, int, int | None], None]
"""Called as (file name, bytes held, bytes in all or None)."""

_TIMEOUT = httpx2.Timeout(30.0, connect=10.0)
_TRANSIENT = {408, 425, 429}

# Retries are logged; where nobody asked for a log, they should not land on the user's terminal.
logging.getLogger("stamina").addHandler(logging.NullHandler())


def fetch(
    source: Source,
    cache: Path,
    *,
    mirror: str | None = None,
    progress: Progress | None = None,
    attempts: int = 5,
    first_wait: float = 0.5,
) -> Path:
    """The path of `source` below `cache`, downloaded if it is not there yet.

    A cut connection is retried (`attempts` in all, waiting first_wait seconds and then longer) and goes on where it
    stopped; what is held stays in a .part file for the next call. DownloadFailed: no answer, a refusal, more bytes
    than promised, a wrong checksum (the file is then deleted). StorageError: the cache cannot be written.
    """
    target = cache / source.path
    if target.is_file():
        return target
    part, url = target.with_name(f"{target.name}.part"), source.url_at(mirror)
    with storing(target, CACHE_MEND):
        part.parent.mkdir(parents=True, exist_ok=True)
    _persist(partial(_go_on, url, part, source, progress), url, attempts, first_wait)
    _verify(url, part, source)
    with storing(target, CACHE_MEND):
        part.replace(target)
    return target


def _persist(request: Callable[[], None], url: str, attempts: int, wait: float) -> None:
    """Repeat `request` after what may pass; name what does not."""
    mend = "run it again to go on where it stopped, or name a mirror in HARMONY_DATA_MIRROR"
    retries = stamina.retry_context(
        on=_is_transient, attempts=attempts, timeout=None, wait_initial=wait, wait_max=20 * wait, wait_jitter=wait
    )
    try:
        for attempt in retries:
            with attempt:
                request()
    except httpx2.HTTPStatusError as error:
        code = error.response.status_code
        raise DownloadFailed(f"the server answers {code}", where=url, mend=mend) from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise DownloadFailed(f"the download was cut: {reason}", where=url, mend=mend) from error


def _is_transient(error: Exception) -> bool:
    if isinstance(error, httpx2.HTTPStatusError):
        return error.response.status_code >= 500 or error.response.status_code in _TRANSIENT
    return isinstance(error, httpx2.TransportError) and not isinstance(error, httpx2.UnsupportedProtocol)


def _go_on(url: str, part: Path, source: Source, progress: Progress | None) -> None:
    """One request for what `part` lacks; a server that knows no ranges sends all, and the file starts anew."""
    held = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={held}-"} if held else {})
    with httpx2.stream("GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT) as response:
        if held and response.status_code == 416:
            return  # there is nothing beyond what we hold: the checksum will judge it
        response.raise_for_status()
        resumed = response.status_code == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {held}-"):
            part.unlink(missing_ok=True)
            raise httpx2.RemoteProtocolError("the server sent another range than was asked for")
        with storing(part, CACHE_MEND), part.open("ab" if resumed else "wb") as file:
            _receive(response, file, held if resumed else 0, source, progress)


def _receive(response: httpx2.Response, file: IO[bytes], held: int, source: Source, progress: Progress | None) -> None:
    length = response.headers.get("Content-Length", "")
    total = held + int(length) if length.isdigit() else None
    for chunk in response.iter_raw():  # as they come, so that a cut loses none
        held += len(chunk)
        if held > source.max_bytes:
            raise DownloadFailed(f"sends more than {source.max_bytes} bytes", where=response.url, mend="wrong file?")
        file.write(chunk)
        if progress:
            progress(source.path.name, held, total)
    file.flush()
    os.fsync(file.fileno())  # the rename that follows may not outlive its content


def _verify(url: str, part: Path, source: Source) -> None:
    with part.open("rb") as file:
        # MD5 is what these publishers give; it finds accidents, and https keeps off the rest.
        found = hashlib.file_digest(file, partial(hashlib.new, source.algorithm, usedforsecurity=False)).hexdigest()
    if found == source.digest:
        return
    part.unlink()
    raise DownloadFailed(
        f"{source.algorithm} is {found}, not the published {source.digest}; the file was deleted",
        where=url,
        mend="run it again, or name another mirror in HARMONY_DATA_MIRROR",
    )
