"""A load that is more than one process can carry, sent by several (`worker` is the other end)."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic_ns

from qdeploy.bench.load.client.dispatch import until_interrupted
from qdeploy.bench.load.client.worker import LOG, REQUESTS, Part
from qdeploy.bench.load.figures.outcome import Outcome
from qdeploy.bench.load.figures.table import read_requests
from qdeploy.bench.load.workload.target import Target
from qdeploy.bench.load.workload.workload import Workload
from qdeploy.engines.transport import KEY_VARIABLES
from qdeploy.errors import QDeployError

OPENING_DELAY_NS = 100_000_000
"""Between telling the workers the start time and that time."""

COUNTS = ("ended", "failed", "in_flight")
OnProgress = Callable[[int, int, int], None]
"""Called with how many requests have ended, have failed and are in flight."""


@dataclass(frozen=True)
class Sent:
    """What the workers did: outcomes in the order of the workload, times from `start_ns`."""

    outcomes: list[Outcome]
    start_ns: int
    busy: float
    interrupted: bool


def split(workload: Workload, target: Target, timeout_s: float, users: int, count: int) -> list[Part]:
    """The workload in `count` parts, session by session in turn, so that all are busy all the time."""
    parts = []
    for number in range(count):
        sessions = workload.sessions[number::count]
        indices = [index for session in sessions for index in session]
        due = None if workload.due_ns is None else workload.due_ns[number::count].tolist()
        parts.append(
            Part(
                url=target.url,
                timeout_s=timeout_s,
                streamed=target.dialect.stream,
                users=len(range(number, users, count)),
                sessions=[len(session) for session in sessions],
                indices=indices,
                due_ns=due,
                payloads=[workload.payloads[index] for index in indices],
            )
        )
    return parts


@asynccontextmanager
async def ready_workers(parts: list[Part], api_key: str | None) -> AsyncIterator[list[Worker]]:
    """A process for each part, ready to send; all have ended when the block has.

    Raises:
        QDeployError: one does not start.
    """
    with TemporaryDirectory(prefix="qdeploy-load-") as name:
        workers = [await _start(part, Path(name) / str(i), api_key) for i, part in enumerate(parts)]
        try:
            await asyncio.gather(*(worker.ready() for worker in workers))
            yield workers
        finally:
            for worker in workers:
                worker.stop()
            await asyncio.gather(*(worker.process.wait() for worker in workers))


async def send(workers: list[Worker], on_progress: OnProgress) -> Sent:
    """Have all parts sent on one clock. Ctrl-C stops the workers; what has ended by then counts.

    Raises:
        QDeployError: a worker died.
    """
    start_ns = monotonic_ns() + OPENING_DELAY_NS
    for worker in workers:
        worker.begin(start_ns)

    def changed() -> None:
        on_progress(*(sum(getattr(worker, key) for worker in workers) for key in COUNTS))

    following = [asyncio.create_task(worker.follow(changed)) for worker in workers]
    interrupted = await until_interrupted(_all(following))
    for worker in workers:
        worker.stop()
    await asyncio.gather(*following)
    outcomes = [outcome for worker in workers for outcome in worker.outcomes()]
    outcomes.sort(key=lambda outcome: outcome.index)
    return Sent(outcomes, start_ns, max(worker.busy for worker in workers), interrupted)


class Worker:
    """A worker process and how far it is."""

    def __init__(self, process: Process, folder: Path) -> None:
        self.process, self._folder = process, folder
        self.ended = self.failed = self.in_flight = 0
        self.busy = 0.0

    async def ready(self) -> None:
        await self._line()

    def begin(self, start_ns: int) -> None:
        assert self.process.stdin
        self.process.stdin.write(b"%d\n" % start_ns)

    def stop(self) -> None:
        """Have it end with what it has; without effect on one that has ended."""
        assert self.process.stdin
        self.process.stdin.close()

    async def follow(self, changed: Callable[[], None]) -> None:
        """Keep up with what it says until its outcomes are written."""
        while "busy" not in (said := await self._line()):
            self.ended, self.failed, self.in_flight = (int(said[key]) for key in COUNTS)
            changed()
        self.busy = said["busy"]

    def outcomes(self) -> list[Outcome]:
        return read_requests(self._folder / REQUESTS)

    async def _line(self) -> dict[str, float]:
        assert self.process.stdout
        line = await self.process.stdout.readline()
        if not line:
            code = await self.process.wait()
            log = (self._folder / LOG).read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            raise QDeployError(f"A process of the load client ended with exit code {code}: {log[-1]}")
        said: dict[str, float] = json.loads(line)
        return said


async def _start(part: Part, folder: Path, api_key: str | None) -> Worker:
    folder.mkdir()
    part.write(folder)
    environment = {key: value for key, value in os.environ.items() if key not in KEY_VARIABLES}
    with (folder / LOG).open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "qdeploy.bench.load.client.worker", str(folder)),
            stdin=PIPE,
            stdout=PIPE,
            stderr=log,
            env=environment | ({KEY_VARIABLES[0]: api_key} if api_key else {}),
            start_new_session=True,  # Ctrl-C is for us alone: we stop them, and take what they have
        )
    return Worker(process, folder)


async def _all(tasks: list[asyncio.Task[None]]) -> None:
    """Wait for tasks, or for the first that fails; being cancelled leaves them alone."""
    await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
