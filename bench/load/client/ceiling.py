"""What the load client itself can do on this machine, measured against the mock server before a run."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import cache
from time import process_time

from qdeploy.bench.load.client import event_loop
from qdeploy.bench.load.client.client import Client
from qdeploy.bench.load.client.dispatch import closed_loop
from qdeploy.bench.load.client.exchange import Exchange
from qdeploy.bench.load.client.mock_server import Pace, mock_server
from qdeploy.bench.load.figures.outcome import read_outcome
from qdeploy.errors import QDeployError

MAX_SHARE = 0.5
"""Of one process's ceiling that a run may use: beyond, a read waits for others often enough to be seen."""

STREAMS, SHORT_TOKENS, LONG_TOKENS = 32, 1, 100
PACE = Pace(first_token_s=0.0, gap_s=0.004)
"""Events 4 ms apart come one a read, which is what costs most."""

PAYLOAD = b'{"prompt": "%d", "max_tokens": %d, "stream": true, "stream_options": {"include_usage": true}}'


@dataclass(frozen=True)
class Ceiling:
    """Processor time of one client process, in seconds: for a request, and for each event of its stream."""

    per_request_s: float
    per_event_s: float

    @property
    def requests_per_s(self) -> float:
        """Of one event each, by a process that does nothing else."""
        return 1 / (self.per_request_s + self.per_event_s)

    @property
    def events_per_s(self) -> float:
        """On streams that are open already, by a process that does nothing else."""
        return 1 / self.per_event_s

    def share(self, requests_per_s: float, events_per_s: float) -> float:
        """Of one process that this load takes."""
        return requests_per_s * self.per_request_s + events_per_s * self.per_event_s

    def processes(self, requests_per_s: float, events_per_s: float) -> int:
        """How many keep each below MAX_SHARE; at most one for each processor."""
        wanted = math.ceil(self.share(requests_per_s, events_per_s) / MAX_SHARE)
        return max(1, min(wanted, len(os.sched_getaffinity(0))))


@cache
def measure_ceiling() -> Ceiling:
    """Measured once a process; takes about a second.

    What counts is the processor time, so that neither the mock's own limit nor a busy machine lowers it.

    Raises:
        QDeployError: the client lost something against the mock.
    """
    with mock_server(PACE) as url:
        return event_loop.run(_measure(f"{url}/completions"))


async def _measure(url: str) -> Ceiling:
    async with Client(url, None, timeout_s=30.0) as client:
        await _cost(client, STREAMS, SHORT_TOKENS)  # opens the connections
        short = await _cost(client, 20 * STREAMS, SHORT_TOKENS)
        long = await _cost(client, STREAMS, LONG_TOKENS)
    per_event = max(long - short, 0.0) / (LONG_TOKENS - SHORT_TOKENS)
    return Ceiling(max(short - per_event, 0.0), per_event)


async def _cost(client: Client, requests: int, tokens: int) -> float:
    """Processor seconds for each of `requests` streams of `tokens` events."""
    payloads = [PAYLOAD % (index, tokens) for index in range(requests)]
    exchanges = [Exchange(index) for index in range(requests)]
    sessions = [range(index, index + 1) for index in range(requests)]
    start = process_time()
    await closed_loop(client, payloads, exchanges, sessions, STREAMS, lambda _: None)
    used = process_time() - start
    for exchange in exchanges:
        outcome = read_outcome(exchange, 0)
        if outcome.error or outcome.output_tokens != tokens or len(outcome.chunk_ns) != tokens:
            raise QDeployError(f"The load client's self-test failed: {outcome.error or 'events were lost'}.")
    return used / requests
