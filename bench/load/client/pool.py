"""Connections to one server: as many as are asked for, each kept for the next request."""

from __future__ import annotations

import asyncio
import socket
import ssl
from time import monotonic_ns

from qdeploy.bench.load.client.connection import Connection

KEEPALIVE_NS = 2_000_000_000
"""Below the 5 s after which uvicorn closes an idle connection: a longer one races with the server's close."""


class Pool:
    """There is no limit on connections: a hidden one would turn an open loop into a closed one.

    Args:
        tls: None for plain HTTP.
    """

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        self._host, self._port, self._tls = host, port, tls
        self._address: tuple[str, int] | None = None
        self._free: list[Connection] = []
        self._open: set[Connection] = set()

    def take(self) -> Connection | None:
        """The connection that became free last, if the server will not have closed it yet."""
        oldest = monotonic_ns() - KEEPALIVE_NS
        while self._free:
            connection = self._free.pop()
            if connection.free_since_ns >= oldest and not connection.transport.is_closing():
                return connection
            connection.close()
        return None

    async def connect(self) -> Connection:
        """A new connection.

        Raises:
            OSError: none of the host's addresses can be reached, or its certificate is not trusted.
        """
        if self._address:
            return await self._connect(self._address)
        loop, problem = asyncio.get_running_loop(), OSError(f"{self._host} has no address")
        for *_, address in await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM):
            try:
                connection = await self._connect((str(address[0]), int(address[1])))
            except OSError as error:
                problem = error
            else:
                self._address = str(address[0]), int(address[1])
                return connection
        raise problem

    async def close(self) -> None:
        """Close every connection, in use or not."""
        for connection in list(self._open):
            connection.close()
        while self._open:
            await asyncio.sleep(0)

    def free(self, connection: Connection) -> None:
        self._free.append(connection)

    def lost(self, connection: Connection) -> None:
        self._open.discard(connection)

    async def _connect(self, address: tuple[str, int]) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(self),
            *address,
            ssl=self._tls,
            server_hostname=self._host if self._tls else None,
        )
        if connection.closed:  # before it was ours
            raise ConnectionResetError(f"{self._host} closed a new connection at once")
        self._open.add(connection)
        return connection
