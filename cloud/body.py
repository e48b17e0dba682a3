"""Reads a request body under limits: bytes, time, and what compressed bytes may grow to."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from harmony.cloud.refusal import Refusal, malformed, too_large

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
_WINDOW = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}  # HTTP's deflate is a zlib stream


def declared_length(header: bytes | None, limit: int) -> int | None:
    """Content-Length, None for a chunked body. 413 above the limit, before a byte of the body is read."""
    if header is None:
        return None
    if not header.isdigit() or len(header) > 19:
        raise malformed("Content-Length is not a number")
    if int(header) > limit:
        raise too_large(limit)
    return int(header)


async def read_body(receive: Receive, *, limit: int, seconds: float) -> bytes:
    """The whole body, counted while it comes. 413 above `limit` bytes, 408 after `seconds`, 499 if the caller left."""
    try:
        async with asyncio.timeout(seconds):
            return await _collect(receive, limit)
    except TimeoutError:
        raise Refusal(408, "slow_body", f"the body did not arrive within {seconds:g} seconds") from None


async def _collect(receive: Receive, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(499, "disconnected", "the caller left before the body was whole")
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise too_large(limit)
        parts.append(part)
        more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def window_of(encoding: bytes | None) -> int | None:
    """zlib's window bits for a Content-Encoding: None for identity, 415 for one that is not read here."""
    name = (encoding or b"identity").strip().lower()
    if name in (b"identity", b""):
        return None
    if name not in _WINDOW:
        raise Refusal(415, "encoding", "Content-Encoding must be gzip, deflate or identity")
    return _WINDOW[name]


def inflate(body: bytes | bytearray, window: int, limit: int) -> bytes:
    """The body, decompressed. 413 if it grows above `limit`, 400 if it is damaged."""
    inflater = zlib.decompressobj(window)
    try:
        whole = inflater.decompress(body, limit + 1)
    except zlib.error:
        raise malformed("the compressed body is damaged") from None
    if len(whole) > limit:
        raise too_large(limit, "the decompressed body")
    if not inflater.eof or inflater.unused_data:
        raise malformed("the compressed body is cut short, or something follows it")
    return whole
