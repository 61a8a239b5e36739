"""Sending requests when they are due, or when a user is free."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from time import monotonic_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.bench.load.client.client import Client
from qdeploy.bench.load.client.exchange import Exchange

INTERRUPTED = "interrupted"
"""The error of a request that Ctrl-C cut off; it is in no figure."""

Tick = Callable[[Exchange], None]


async def open_loop(
    client: Client,
    payloads: list[bytes],
    exchanges: list[Exchange],
    sessions: list[range],
    due_ns: NDArray[np.int64],
    start_ns: int,
    tick: Tick,
) -> None:
    """Begin every session when it is due, `due_ns` after the start, whatever became of the earlier ones."""
    async with asyncio.TaskGroup() as group:
        for session, due in zip(sessions, (start_ns + due_ns).tolist(), strict=True):
            await _sleep_until(due)
            group.create_task(_converse(client, payloads, exchanges, session, due, tick))


async def closed_loop(
    client: Client,
    payloads: list[bytes],
    exchanges: list[Exchange],
    sessions: list[range],
    users: int,
    tick: Tick,
) -> None:
    """`users` users, each beginning its next session when its last one has ended."""
    waiting = iter(sessions)

    async def user() -> None:
        for session in waiting:
            await _converse(client, payloads, exchanges, session, monotonic_ns(), tick)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(users, len(sessions))):
            group.create_task(user())


async def until_interrupted(work: Coroutine[Any, Any, None]) -> bool:
    """Await `work`; whether Ctrl-C ended it. asyncio turns the first Ctrl-C into a cancellation."""
    try:
        await work
    except asyncio.CancelledError:
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
        return True
    return False


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep the collector from stopping the clock: with many streams open it looks at 100,000s of objects.

    What the client makes has no cycles, and goes when it is done with.
    """
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def _sleep_until(time_ns: int) -> None:
    """Give way at least once, so that a loop that is behind reads answers too. Timers may go off early."""
    await asyncio.sleep((time_ns - monotonic_ns()) / 1e9)
    while (left := time_ns - monotonic_ns()) > 0:
        await asyncio.sleep(left / 1e9)


async def _converse(
    client: Client, payloads: list[bytes], exchanges: list[Exchange], session: range, due_ns: int, tick: Tick
) -> None:
    """Send the requests of a session one after another; each but the first is due when the last one ended."""
    for index in session:
        exchange = exchanges[index]
        exchange.scheduled_ns = due_ns
        try:
            await client.send(exchange, payloads[index])
        except asyncio.CancelledError:
            exchange.error = INTERRUPTED
            raise
        tick(exchange)
        due_ns = exchange.end_ns
