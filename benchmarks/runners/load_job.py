"""What the runner of a load client is asked for and what it answers: one client, in a process of its own.

Each line on standard input is a job in JSON: `requests` of `tokens` tokens, by `users` that each wait for
their last one (`rate` null) or at a constant `rate`. The runner says "begin" when the load does, and then a
line of JSON with the client's processor time while it lasted, its resident memory before and when most were
in flight, and each request's time to first token.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

BEGIN = "begin"
Send = Callable[[int], Awaitable[float]]
"""Number of a request → seconds from its sending to its first token, by the client's own clock."""


class LoadJob:
    """One load on the server at `url`, which ends in /v1."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.url: str = fields["url"]
        self.requests: int = fields["requests"]
        self.tokens: int = fields["tokens"]
        self.users: int = fields["users"]
        self.rate: float | None = fields["rate"]
        self.weigh_at_s: float | None = fields["weigh_at_s"]

    def prompt(self, index: int) -> str:
        return f"request {index}"

    async def load(self, send: Send) -> dict[str, Any]:
        """Put the load on the server; what it cost."""
        await send(0)
        found: dict[str, Any] = {
            "rss_before": _resident_bytes(),
            "first_token_s": [],
            "began_s": [],
            "errors": [],
        }
        say(BEGIN)
        weighing = asyncio.create_task(self._weigh(found))
        cpu, start = _cpu_seconds(), time.perf_counter()

        async def one(index: int) -> None:
            found["began_s"].append(time.perf_counter() - start)
            try:
                found["first_token_s"].append(await send(index))
            except Exception as error:  # of whatever kind the client has
                found["errors"].append(repr(error))

        await (self._open(one) if self.rate else self._closed(one))
        found |= {"cpu_s": _cpu_seconds() - cpu, "seconds": time.perf_counter() - start}
        await weighing
        return found

    async def _open(self, one: Callable[[int], Awaitable[None]]) -> None:
        start, tasks = time.perf_counter(), []
        for index in range(1, self.requests + 1):
            await asyncio.sleep(start + index / (self.rate or 1.0) - time.perf_counter())
            tasks.append(asyncio.ensure_future(one(index)))
        await asyncio.gather(*tasks)

    async def _closed(self, one: Callable[[int], Awaitable[None]]) -> None:
        waiting = iter(range(1, self.requests + 1))

        async def user() -> None:
            for index in waiting:
                await one(index)

        await asyncio.gather(*(user() for _ in range(self.users)))

    async def _weigh(self, found: dict[str, Any]) -> None:
        if self.weigh_at_s is not None:
            await asyncio.sleep(self.weigh_at_s)
            found["rss_held"] = _resident_bytes()


def jobs() -> Iterator[LoadJob]:
    """The jobs that come in, until there are no more."""
    for line in sys.stdin:
        yield LoadJob(json.loads(line))


def report(found: dict[str, Any]) -> None:
    say(json.dumps(found))


def say(line: str) -> None:
    print(line, flush=True)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
