"""One HTTP/1.1 connection on which every read is stamped before anything else is done with it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from time import monotonic_ns
from typing import Protocol

from qdeploy.bench.load.client.exchange import Exchange
from qdeploy.bench.load.client.wire import MALFORMED, MalformedError, walk_chunks

MAX_HEAD_BYTES = 1 << 16
DONE = re.compile(rb"(?:\A|[\r\n])data: ?\[DONE\][\r\n]*\Z")
DONE_WINDOW = 32
DRAIN_S = 2.0
"""How long the end of a body may come after `[DONE]`; then its connection is closed and not used again."""

RESET, STALE = "connection reset", "stale"


class Owner(Protocol):
    """Who is told of a connection's ends."""

    def free(self, connection: Connection, /) -> None: ...

    def lost(self, connection: Connection, /) -> None: ...


class Connection(asyncio.Protocol):
    """Carries one exchange at a time; tells its owner when it can carry the next, and when it is gone.

    A stream has been answered at its `[DONE]` or at the end of its body, whichever comes first: servers that
    leave the connection open after `[DONE]` would otherwise be waited for until the timeout.
    """

    transport: asyncio.Transport

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._exchange: Exchange | None = None
        self._answered: asyncio.Future[str | None]
        self._head = bytearray()
        self._chunked, self._length, self._boundary, self._keep = False, -1, 0, True
        self.used, self.free_since_ns, self.closed = False, 0, False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a socket's can write too

    def start(self, exchange: Exchange, request: bytes) -> asyncio.Future[str | None]:
        """Send `request`. The future's result is None when it is answered, else what went wrong."""
        self._exchange, self._head = exchange, bytearray()
        self._answered = asyncio.get_running_loop().create_future()
        exchange.sent_ns = monotonic_ns()
        self.transport.write(request)
        return self._answered

    def close(self) -> None:
        """Drop the connection, whatever is still to come on it."""
        self.closed, self._exchange = True, None
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        now = monotonic_ns()
        exchange = self._exchange
        if exchange is None:
            self.close()  # nothing was asked: the server speaks of a problem of its own, and ends it
        elif exchange.headers_ns:
            self._record(exchange, data, now)
        else:
            self._head += data
            self._try(self._read_head, exchange, now)

    def connection_lost(self, _: Exception | None) -> None:
        exchange, self._exchange, self.closed = self._exchange, None, True
        self._owner.lost(self)
        if exchange is None or self._answered.done():
            return
        if not exchange.headers_ns:
            self._answer(exchange, STALE if self.used and not self._head else RESET)
        elif self._chunked or self._length >= 0:
            self._answer(exchange, RESET)
        else:
            self._answer(exchange, None)

    def _record(self, exchange: Exchange, data: bytes, now: int) -> None:
        body = exchange.body
        body += data
        exchange.read_ns.append(now)
        exchange.read_ends.append(len(body))
        if self._chunked:
            if body.endswith(b"\r\n\r\n"):  # as the last chunk does, and few others
                self._try(self._walk, exchange, now)
        elif len(body) >= self._length >= 0:
            self._end(exchange, now, whole=len(body) == self._length)
        if body.find(b"[DONE]", -DONE_WINDOW) >= 0 and not self._answered.done():
            self._see_done(exchange, now)

    def _walk(self, exchange: Exchange, now: int) -> None:
        self._boundary, over = walk_chunks(exchange.body, self._boundary)
        if over:
            self._end(exchange, now, whole=self._boundary == len(exchange.body))

    def _see_done(self, exchange: Exchange, now: int) -> None:
        """Call the stream answered if its last event is `[DONE]`, and not a text that speaks of it."""
        if DONE.search(exchange.body, len(exchange.body) - DONE_WINDOW):
            self._answer(exchange, None, now)
            asyncio.get_running_loop().call_later(DRAIN_S, self._stop_draining, exchange)

    def _stop_draining(self, exchange: Exchange) -> None:
        if self._exchange is exchange:
            self.close()

    def _end(self, exchange: Exchange, now: int, whole: bool) -> None:
        """The body is over; the connection is free if nothing that was not asked for came behind it."""
        self._exchange = None
        self._answer(exchange, None, now)
        if whole and self._keep:
            self.used, self.free_since_ns = True, now
            self._owner.free(self)
        else:
            self.close()

    def _answer(self, exchange: Exchange, problem: str | None, now: int = 0) -> None:
        if not self._answered.done():
            exchange.end_ns = now or monotonic_ns()
            self._answered.set_result(problem)

    def _try(self, step: Callable[[Exchange, int], None], exchange: Exchange, now: int) -> None:
        try:
            step(exchange, now)
        except MalformedError as error:
            exchange.detail = str(error)
            self._answer(exchange, MALFORMED, now)
            self.close()

    def _read_head(self, exchange: Exchange, now: int) -> None:
        """Read the head once it is whole; what came behind it is the body's."""
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            if len(self._head) > MAX_HEAD_BYTES:
                raise MalformedError(f"no end of the headers in {len(self._head)} bytes")
            return None
        head, rest = bytes(self._head[:end]), bytes(self._head[end + 4 :])
        status, fields = _parse_head(head)
        if 100 <= status < 200:  # interim: the answer proper follows
            self._head = bytearray(rest)
            return self._read_head(exchange, now)
        exchange.status, exchange.headers_ns = status, now
        exchange.encoding = fields.get("content-encoding", "").lower()
        if 300 <= status < 400:
            exchange.detail = f"redirected to {fields.get('location')}: give the address of the API itself"
        self._chunked = exchange.chunked = "chunked" in fields.get("transfer-encoding", "").lower()
        self._length, self._boundary = _length(fields, status, self._chunked), 0
        self._keep = head.startswith(b"HTTP/1.1") and "close" not in fields.get("connection", "").lower()
        if rest or self._length == 0:
            self._record(exchange, rest, now)
        return None


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Status and header fields, their names in lower case.

    Raises:
        MalformedError: it does not begin like an answer of HTTP/1.
    """
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
        raise MalformedError(f"the answer begins with {first[:40]!r}: no HTTP/1.1 server")
    pairs = (line.partition(":") for line in lines)
    return int(rest[:3]), {name.strip().lower(): value.strip() for name, _, value in pairs}


def _length(fields: dict[str, str], status: int, chunked: bool) -> int:
    """Bytes of the body, -1 if its end shows otherwise (RFC 9112, section 6.3)."""
    if status in (204, 304):
        return 0
    stated = fields.get("content-length", "")
    if chunked or not stated:
        return -1
    if not stated.isdecimal():
        raise MalformedError(f"a content length of {stated[:40]!r}")
    return int(stated)
