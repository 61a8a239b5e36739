"""The hot path: send a request, stamp every read, think later."""

from __future__ import annotations

import asyncio
from time import monotonic_ns
from types import SimpleNamespace
from typing import Any

import aiohttp

from qdeploy.bench.load.exchange import Exchange

DETAIL_BYTES = 500
KEEPALIVE_S = 2.0
"""Below the 5 s after which uvicorn closes an idle connection: a longer one races with the server's close."""
READ_BUFFER_BYTES = 1 << 20


class Client:
    """An HTTP client that streams completions and counts what is in flight.

    There is no limit on connections: a hidden pool limit would turn an open loop into a closed one.
    """

    def __init__(self, url: str, api_key: str | None, timeout_s: float) -> None:
        self.url, self.timeout_s = url, timeout_s
        self.in_flight = self.peak_in_flight = 0
        self._session = _session(api_key, timeout_s)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def send(self, exchange: Exchange, payload: bytes) -> Exchange:
        """POST `payload` and record the stream into `exchange`; failures are recorded, never raised."""
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        exchange.dispatched_ns = monotonic_ns()
        try:
            await self._stream(exchange, payload)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            exchange.error, exchange.detail = _kind(error), str(error) or None
        finally:
            exchange.end_ns = monotonic_ns()
            self.in_flight -= 1
        return exchange

    async def _stream(self, exchange: Exchange, payload: bytes) -> None:
        async with self._session.post(self.url, data=payload, trace_request_ctx=exchange) as response:
            exchange.headers_ns = monotonic_ns()
            exchange.status = response.status
            if response.status != 200:
                exchange.error = f"HTTP {response.status}"
                exchange.detail = (await response.read())[:DETAIL_BYTES].decode(errors="replace")
                return
            body, read_ns, read_ends = exchange.body, exchange.read_ns, exchange.read_ends
            async for data in response.content.iter_any():
                read_ns.append(monotonic_ns())
                body += data
                read_ends.append(len(body))


def _session(api_key: str | None, timeout_s: float) -> aiohttp.ClientSession:
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        trace_configs=[_stamp_sent()],
        read_bufsize=READ_BUFFER_BYTES,
    )


def _stamp_sent() -> aiohttp.TraceConfig:
    """Stamp `sent_ns` when a connection is there and the request's bytes come next."""

    async def stamp(_: aiohttp.ClientSession, context: SimpleNamespace, __: Any) -> None:
        context.trace_request_ctx.sent_ns = monotonic_ns()

    trace = aiohttp.TraceConfig()
    trace.on_connection_create_end.append(stamp)
    trace.on_connection_reuseconn.append(stamp)
    return trace


def _kind(error: BaseException) -> str:
    """The name under which a failure is counted."""
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return "timeout"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "cannot connect"
    if isinstance(error, (ConnectionError, aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError)):
        return "connection reset"
    return type(error).__name__
