"""Send a request and record what comes back."""

from __future__ import annotations

import asyncio
import ssl
from time import monotonic_ns
from urllib.parse import SplitResult, urlsplit

from qdeploy.bench.load.client.connection import STALE, Connection
from qdeploy.bench.load.client.exchange import Exchange
from qdeploy.bench.load.client.pool import Pool
from qdeploy.bench.load.client.wire import MALFORMED, MalformedError, decoded
from qdeploy.errors import UsageError

DETAIL_BYTES = 500


class Client:
    """An HTTP/1.1 client that streams completions and counts what is in flight.

    It asks no proxy, and reports redirects instead of following them: what is measured is the server named.

    Args:
        url: where requests are POSTed.
        timeout_s: from the dispatch of a request to the end of its stream.

    Raises:
        UsageError: the URL or the key cannot be put into an HTTP request.
    """

    def __init__(self, url: str, api_key: str | None, timeout_s: float) -> None:
        self.url, self.timeout_s = url, timeout_s
        self.in_flight = 0
        parts = urlsplit(url)
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._pool = Pool(parts.hostname or "", parts.port or (443 if tls else 80), tls)
        self._head = _request_head(parts, api_key)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.close()

    async def send(self, exchange: Exchange, payload: bytes) -> Exchange:
        """POST `payload` and record the stream into `exchange`; failures are recorded, never raised."""
        self.in_flight += 1
        exchange.dispatched_ns = monotonic_ns()
        try:
            async with asyncio.timeout(self.timeout_s):
                exchange.error = await self._exchange(
                    exchange, b"%b%d\r\n\r\n%b" % (self._head, len(payload), payload)
                )
        except TimeoutError:
            exchange.error = "timeout"
        except OSError as error:
            exchange.error, exchange.detail = "cannot connect", str(error)
        finally:
            exchange.end_ns = exchange.end_ns or monotonic_ns()
            self.in_flight -= 1
        if exchange.error is None and exchange.status != 200:
            _refuse(exchange)
        return exchange

    async def _exchange(self, exchange: Exchange, request: bytes) -> str | None:
        """What went wrong, None if nothing did.

        A server may close an idle connection while a request is on its way there. Only then, and if no byte
        of an answer has come, the request is sent again, on a new connection.
        """
        problem: str | None = STALE
        if connection := self._pool.take():
            problem = await _carry(connection, exchange, request)
        if problem == STALE:
            exchange.end_ns = 0
            problem = await _carry(await self._pool.connect(), exchange, request)
        return problem


async def _carry(connection: Connection, exchange: Exchange, request: bytes) -> str | None:
    try:
        return await connection.start(exchange, request)
    except asyncio.CancelledError:  # out of time, or the run is stopped
        connection.close()
        raise


def _refuse(exchange: Exchange) -> None:
    """Make an answer that is no stream an error, with what the server says about it."""
    exchange.error = f"HTTP {exchange.status}"
    try:
        text = decoded(exchange)[0][:DETAIL_BYTES].decode(errors="replace")
    except MalformedError as error:
        text = f"{MALFORMED}: {error}"
    exchange.detail = exchange.detail or text


def _request_head(url: SplitResult, api_key: str | None) -> bytes:
    """A request up to the value of its last field, Content-Length."""
    target = (url.path or "/") + (f"?{url.query}" if url.query else "")
    lines = [
        f"POST {target} HTTP/1.1",
        f"Host: {url.netloc.rpartition('@')[2]}",
        "Accept: */*",
        "Accept-Encoding: identity",
        "Content-Type: application/json",
        "User-Agent: qdeploy",
        *([f"Authorization: Bearer {api_key}"] if api_key else []),
        "Content-Length: ",
    ]
    head = "\r\n".join(lines)
    if not head.isascii() or not head.replace("\r\n", "").isprintable() or " " in target:
        raise UsageError(
            f"{url.geturl()!r} or the API key holds characters that HTTP does not allow: "
            "write the URL in percent-encoding and look for a line break at the end of the key."
        )
    return head.encode()
