"""One of several processes that put a load on an endpoint together (started by `workers`).

    python -m qdeploy.bench.load.client.worker FOLDER

reads its part from FOLDER, says "ready", waits on standard input for the start time and sends. It then says
now and then how many requests it has ended, failed and in flight, writes its outcomes into FOLDER and says
what processor time it took. It stops early, with what has ended, when standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic_ns, thread_time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qdeploy.bench.load.client import event_loop
from qdeploy.bench.load.client.client import Client
from qdeploy.bench.load.client.dispatch import INTERRUPTED, closed_loop, no_garbage_collection, open_loop
from qdeploy.bench.load.client.exchange import Exchange
from qdeploy.bench.load.figures.outcome import read_outcome
from qdeploy.bench.load.figures.table import write_requests
from qdeploy.engines.transport import api_key_from_environment
from qdeploy.files import read_json

JOB, PAYLOADS, REQUESTS, LOG = "job.json", "payloads.parquet", "requests.parquet", "log.txt"
REPORT_NS = 250_000_000


@dataclass(frozen=True)
class Part:
    """What one worker sends. `sessions` are the lengths of consecutive runs of `payloads`.

    `indices` are the payloads' numbers in the whole load; `due_ns` is when sessions begin, None in a closed
    loop of `users`.
    """

    url: str
    timeout_s: float
    streamed: bool
    users: int
    sessions: list[int]
    indices: list[int]
    due_ns: list[int] | None
    payloads: list[bytes]

    def write(self, folder: Path) -> None:
        """Into `folder`, for `read_part`."""
        fields = {key: value for key, value in asdict(self).items() if key != "payloads"}
        (folder / JOB).write_text(json.dumps(fields), encoding="utf-8")
        pq.write_table(pa.table({"payload": pa.array(self.payloads, pa.binary())}), folder / PAYLOADS)


def read_part(folder: Path) -> Part:
    payloads = pq.read_table(folder / PAYLOADS)["payload"].to_pylist()
    return Part(**read_json(folder / JOB), payloads=payloads)


class _Report:
    """Tells the parent how far this worker is."""

    def __init__(self, client: Client) -> None:
        self._client, self._ended, self._failed, self._told_ns = client, 0, 0, 0

    def ended(self, exchange: Exchange) -> None:
        self._ended += 1
        self._failed += exchange.error is not None
        if monotonic_ns() - self._told_ns > REPORT_NS:
            self.tell()

    def tell(self) -> None:
        self._told_ns = monotonic_ns()
        _say(ended=self._ended, failed=self._failed, in_flight=self._client.in_flight)


async def _work(folder: Path) -> None:
    part = read_part(folder)
    exchanges = [Exchange(index) for index in part.indices]
    commands = await _standard_input()
    async with Client(part.url, api_key_from_environment(), part.timeout_s) as client:
        report = _Report(client)
        with no_garbage_collection():
            _say(ready=True)
            start_ns = int(await commands.readline())
            cpu, wall = thread_time(), monotonic_ns()
            sending = asyncio.create_task(_send(part, client, exchanges, start_ns, report))
            stop = asyncio.create_task(commands.read())
            stop.add_done_callback(lambda _: sending.cancel())
            await asyncio.wait([sending])
            busy = (thread_time() - cpu) / ((monotonic_ns() - wall) / 1e9)
        if not sending.cancelled():
            sending.result()
        report.tell()
    ended = [e for e in exchanges if e.end_ns and e.error != INTERRUPTED]
    write_requests(folder / REQUESTS, [read_outcome(e, start_ns, part.streamed) for e in ended])
    _say(busy=busy)


async def _send(
    part: Part, client: Client, exchanges: list[Exchange], start_ns: int, report: _Report
) -> None:
    ends = np.cumsum(part.sessions).tolist()
    sessions = [range(end - length, end) for length, end in zip(part.sessions, ends, strict=True)]
    if part.due_ns is None:
        await asyncio.sleep((start_ns - monotonic_ns()) / 1e9)
        await closed_loop(client, part.payloads, exchanges, sessions, part.users, report.ended)
    else:
        due_ns = np.array(part.due_ns, dtype=np.int64)
        await open_loop(client, part.payloads, exchanges, sessions, due_ns, start_ns, report.ended)


async def _standard_input() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    return reader


def _say(**what: float) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    event_loop.run(_work(Path(sys.argv[1])))
