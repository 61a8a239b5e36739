"""A TCP server that answers with the bytes of a script: what no well-behaved server would send."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


@asynccontextmanager
async def scripted(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """The port on which `script` handles each connection."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of the next request.

    Raises:
        asyncio.IncompleteReadError: the client has closed the connection.
    """
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    return head, await reader.readexactly(int(length))


def answering(answer: bytes, close: bool = False, read_size: int = 1 << 20) -> Script:
    """Every request gets `answer`, `read_size` bytes at a time."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            for start in range(0, len(answer), read_size):
                writer.write(answer[start : start + read_size])
                await writer.drain()
                if read_size < len(answer):
                    await asyncio.sleep(0)
            if close:
                return

    return script
