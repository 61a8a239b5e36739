"""Load by qdeploy's client, and a look at every event that it recorded."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from load_job import LoadJob, jobs, report

from qdeploy.bench.load.client import event_loop
from qdeploy.bench.load.client.client import Client
from qdeploy.bench.load.client.dispatch import no_garbage_collection
from qdeploy.bench.load.client.exchange import Exchange
from qdeploy.bench.load.client.mock_server import identity
from qdeploy.bench.load.client.sse import parse_events
from qdeploy.bench.load.client.wire import decoded
from qdeploy.bench.load.figures.metrics import peak_in_flight
from qdeploy.bench.load.figures.outcome import read_outcome


async def main(job: LoadJob) -> dict[str, Any]:
    options = {"max_tokens": job.tokens, "stream": True, "stream_options": {"include_usage": True}}
    payloads = [json.dumps({"prompt": job.prompt(i), **options}).encode() for i in range(job.requests + 1)]
    exchanges: list[Exchange] = []

    async with Client(f"{job.url}/completions", None, 600.0) as client:

        async def send(index: int) -> float:
            exchanges.append(await client.send(Exchange(index), payloads[index]))
            return (exchanges[-1].read_ns[0] - exchanges[-1].sent_ns) / 1e9

        with no_garbage_collection():
            found: dict[str, Any] = await job.load(send)
    start = time.process_time()
    outcomes = [read_outcome(exchange, 0) for exchange in exchanges]
    found["parse_s"] = time.process_time() - start
    found["failed"] = sum(outcome.error is not None for outcome in outcomes)
    found["peak"] = peak_in_flight(outcomes)
    faults = [_faults(e, payloads[e.index], job.tokens) for e in exchanges]
    found["lost"], found["misattributed"] = (sum(column) for column in zip(*faults, strict=True))
    return found


def _faults(exchange: Exchange, payload: bytes, tokens: int) -> tuple[int, int]:
    """Events of this stream that did not come, or came twice or out of turn; and those of another stream."""
    events = [json.loads(e.data) for e in parse_events(decoded(exchange)[0]) if e.data != b"[DONE]"]
    ours = [e["choices"][0]["text"] for e in events if e["id"] == identity(payload) and e["choices"]]
    return tokens - sum(a == f" {i}" for i, a in enumerate(ours)), sum(
        e["id"] != identity(payload) for e in events
    )


if __name__ == "__main__":
    run = asyncio.run if sys.argv[1:] == ["asyncio"] else event_loop.run
    for job in jobs():
        report(run(main(job)))
