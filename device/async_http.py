"""As much of HTTP/1.1 (RFC 9112) as the fallback needs, over asyncio. Bounded; the deadline is its caller's."""

from __future__ import annotations

import asyncio
import re
import socket
from http.client import BadStatusLine, HTTPException, IncompleteRead, parse_headers
from io import BytesIO
from typing import Any

from harmony.core.errors import CloudAnswerInvalid
from harmony.device.question import Question, Reply, Service, Tally

_MOST_HEAD_BYTES = 64 << 10
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [^\r\n]*)?\r\n")


async def open_stream(service: Service, context: Any) -> Stream:
    """A new connection. context: of `tls_context`, to speak TLS. OSError."""
    reader, writer = await asyncio.open_connection(
        service.host,
        service.port,
        limit=_MOST_HEAD_BYTES,
        ssl=context,
        server_hostname=service.host if context is not None else None,
    )
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Stream(service, reader, writer)


class Stream:
    """One connection. One question at a time."""

    def __init__(self, service: Service, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._service, self._reader, self._writer = service, reader, writer
        self._loop = asyncio.get_running_loop()

    def is_fresh(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether it belongs to the loop, and the other side has not closed it."""
        return loop is self._loop and not self._reader.at_eof() and not self._writer.is_closing()

    def abort(self) -> None:
        """Close it at once; nothing if its loop has ended, and with it the connection."""
        if not self._loop.is_closed():
            self._writer.transport.abort()

    async def exchange(self, question: Question, tally: Tally) -> tuple[Reply, bool]:
        """The reply, and whether the connection can be kept. HTTPException, EOFError, OSError, CloudAnswerInvalid."""
        host = f"[{self._service.host}]" if ":" in self._service.host else self._service.host
        lines = [f"{question.method} {question.path} HTTP/1.1", f"host: {host}:{self._service.port}"]
        lines += [f"{name}: {value}" for name, value in question.headers.items()]
        self._writer.write("\r\n".join([*lines, "", ""]).encode("ascii") + question.body)
        await self._writer.drain()
        tally.sent += len(question.body)
        version, status, headers = await self._head()
        body, framed = await self._body(status, headers, question.limit, tally)
        keep = framed and version == b"1" and "close" not in headers.get("connection", "").lower()
        return Reply(status, headers, body), keep

    async def _head(self) -> tuple[bytes, int, dict[str, str]]:
        """Minor version, status and headers; what comes before a final answer (1xx) is passed over."""
        while True:
            try:
                head = await self._reader.readuntil(b"\r\n\r\n")
            except asyncio.LimitOverrunError:
                raise HTTPException(f"headers of more than {_MOST_HEAD_BYTES} bytes") from None
            line = _STATUS.match(head)
            if line is None:
                raise BadStatusLine(head[:60].decode("latin-1"))
            if not line[2].startswith(b"1"):
                found = parse_headers(BytesIO(head[line.end() :]))
                return line[1], int(line[2]), {name.lower(): value for name, value in found.items()}

    async def _body(self, status: int, headers: dict[str, str], limit: int, tally: Tally) -> tuple[bytes, bool]:
        """The body, and whether it had an end of its own."""
        if status in (204, 304):
            return b"", True
        if "transfer-encoding" in headers:
            if headers["transfer-encoding"].lower() != "chunked":
                raise HTTPException("a transfer encoding that is not chunked")
            return await self._chunks(limit, tally), True
        if (length := headers.get("content-length")) is not None:
            return await self._exactly(_number(length, 10), limit, tally), True
        parts, size = [], 0
        while part := await self._reader.read(1 << 16):
            size += len(part)
            tally.received += len(part)
            self._require_within(size, limit)
            parts.append(part)
        return b"".join(parts), False

    async def _chunks(self, limit: int, tally: Tally) -> bytes:
        parts, size = [], 0
        while True:
            count = _number((await self._line()).split(b";")[0].decode("latin-1").strip(), 16)
            if count == 0:
                break
            size += count
            parts.append(await self._exactly(count, limit - size + count, tally))
            if await self._line():
                raise HTTPException("a chunk that does not end where it should")
        while await self._line():  # trailers
            pass
        return b"".join(parts)

    async def _line(self) -> bytes:
        try:
            return (await self._reader.readuntil(b"\r\n"))[:-2]
        except asyncio.LimitOverrunError:
            raise HTTPException("a line without an end") from None

    async def _exactly(self, count: int, limit: int, tally: Tally) -> bytes:
        self._require_within(count, limit)
        try:
            part = await self._reader.readexactly(count)
        except asyncio.IncompleteReadError as error:
            tally.received += len(error.partial)
            raise IncompleteRead(error.partial, count - len(error.partial)) from None
        tally.received += count
        return part

    def _require_within(self, size: int, limit: int) -> None:
        if size > limit:
            raise CloudAnswerInvalid(f"the answer is larger than {limit} bytes", where=self._service.url)


def _number(text: str, base: int) -> int:
    digits = "0123456789abcdefABCDEF" if base == 16 else "0123456789"
    if not text or len(text) > 16 or text.strip(digits):
        raise HTTPException(f"'{text[:20]}' is no length")
    return int(text, base)
