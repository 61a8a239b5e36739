"""What a running load looks like, in one line beside the progress bar."""

from __future__ import annotations

from collections import deque
from statistics import median
from time import monotonic_ns

from qdeploy.bench.load.client.client import Client
from qdeploy.bench.load.client.exchange import Exchange
from qdeploy.progress import Task

RECENT = 100
"""Requests over which rate and latencies are taken: enough for a median, few enough to follow a change."""

REFRESH_NS = 250_000_000


class Live:
    """Keeps the note of a progress task: rate, latencies of the last RECENT requests, in flight, failures.

    Nothing is parsed while the load runs, so the first latency is that of the first bytes of the answer.
    """

    def __init__(self, task: Task, client: Client) -> None:
        self._task, self._client = task, client
        self._recent = deque[Exchange](maxlen=RECENT)
        self._failed = 0
        self._shown_ns = 0

    def ended(self, exchange: Exchange) -> None:
        """Count a request that has ended."""
        if exchange.error:
            self._failed += 1
        else:
            self._recent.append(exchange)
        now = monotonic_ns()
        if self._client.in_flight == 0 or now - self._shown_ns > REFRESH_NS:
            self._task.note(self._line())
            self._shown_ns = now
        self._task.advance()

    def _line(self) -> str:
        parts = [f"{self._client.in_flight} in flight"]
        if len(self._recent) > 1:
            seconds = (self._recent[-1].end_ns - self._recent[0].end_ns) / 1e9
            first = median(e.read_ns[0] - e.sent_ns for e in self._recent) / 1e6
            whole = median(e.end_ns - e.sent_ns for e in self._recent) / 1e6
            parts.append(f"{(len(self._recent) - 1) / max(seconds, 1e-9):.1f}/s")
            parts.append(f"p50 first byte {first:.0f} ms, end {whole:.0f} ms")
        parts.append(f"{self._failed} failed")
        return ", ".join(parts)


class LiveWorkers:
    """The same for a load that several processes send."""

    def __init__(self, task: Task) -> None:
        self._task, self._ended = task, 0

    def update(self, ended: int, failed: int, in_flight: int) -> None:
        """Show what all workers together have done."""
        self._task.note(f"{in_flight} in flight, {failed} failed")
        self._task.advance(ended - self._ended)
        self._ended = ended
