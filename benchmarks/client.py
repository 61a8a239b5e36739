"""Load clients against one mock server: what they cost, and what they add to what they measure.

Each runs in a process of its own, in its own environment, and sends the same requests. Ours is used as
`qdeploy bench` uses it; of vLLM's benchmark and of guidellm it is the function that sends one request and
reads its stream, without their tokenizers, schedulers and reports.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.peer import GUIDELLM, INSTALL_COMMAND
from benchmarks.process import ProcessError
from benchmarks.runs import RUNNERS
from benchmarks.table import table
from qdeploy.bench.load.client.ceiling import Ceiling, measure_ceiling
from qdeploy.bench.load.client.mock_server import Pace, mock_server
from qdeploy.engines.environment import installed

ROUNDS = 2
"""Of each measurement, the clients in turn; the least counts, because noise only adds."""

STREAMS = {"requests": 256, "tokens": 128, "users": 32}
STREAMS_PACE = Pace(first_token_s=0.02, gap_s=0.004)
"""An event comes when the one before has been read, as it does from an engine."""

HELD = {"requests": 1000, "tokens": 4, "rate": 500.0, "weigh_at_s": 8.0}
HELD_PACE = Pace(first_token_s=0.1, gap_s=4.0)

OPEN = {"tokens": 64}
OPEN_PACE = Pace(first_token_s=0.005, gap_s=0.004)
OPEN_RATE, OPEN_S = 100.0, 6.0
PROBE = {"requests": 700, "tokens": 1}

MANY = {"requests": 10_000, "tokens": 20, "rate": 1250.0, "weigh_at_s": 10.0}
MANY_PACE = Pace(first_token_s=0.5, gap_s=1.0)

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Added:
    """p50 and p99 of the time to first token, in ms: over a socket's, and the socket's own."""

    added_ms: NDArray[np.float64]
    socket_ms: NDArray[np.float64]
    rate_error: float
    failed: int


class Contender:
    """A client in a process of its own, and what has been measured of it.

    Raises:
        ProcessError: from any method: the process failed.
    """

    def __init__(self, name: str, python: Path, runner: str, work: Path, options: Sequence[str] = ()) -> None:
        self.name, self.runner = name, runner
        self.per_event_s, self.parse_s = list[float](), list[float]()
        self.stream_bytes = 0.0
        self._log = work / f"{name}.log"
        command = [str(python), str(RUNNERS / runner), *options]
        with self._log.open("wb") as log:
            self._process = Popen(command, stdin=PIPE, stdout=PIPE, stderr=log, text=True)

    def begin(self, url: str, **fields: Any) -> None:
        """Put a load on the server; returns when it has begun."""
        assert self._process.stdin
        defaults = {"users": 1, "rate": None, "weigh_at_s": None, "url": url}
        print(json.dumps(defaults | fields), file=self._process.stdin, flush=True)
        self._line()

    def report(self) -> Report:
        """What the load that was begun last has cost, once it is over."""
        found: Report = json.loads(self._line())
        return found

    def end(self) -> None:
        self._process.communicate()

    def _line(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
            raise ProcessError(f"{self.name} failed with exit code {self._process.wait()}:\n{tail}")
        return line


def client(work: Path) -> None:
    """Print the tables of the load clients."""
    busy = psutil.cpu_percent(1.0)
    contenders, socket = _contenders(work), Contender("socket", Path(sys.executable), "load_socket.py", work)
    for contender in contenders:  # before anything else: memory that has been freed is used again
        _weigh(contender)
    for _ in range(ROUNDS):
        for contender in contenders:
            _cost(contender)
    print("\n## Load clients: processor time and memory\n")
    print(_cost_table(contenders))
    print(
        f"\n{STREAMS['users']} streams at once, an event each 4 ms; processors were {busy:.0f} % busy before."
    )
    print("\n## Load clients: what they add to the time to first token\n")
    print(_latency_table(contenders, socket, measure_ceiling()))
    print(
        "\nAdded: the client's percentile less that of a blocking socket that asks the same server meanwhile."
    )
    print("\n## 10,000 streams at once\n")
    print(_many_table(contenders[0]))
    for contender in (*contenders, socket):
        contender.end()


def _contenders(work: Path) -> list[Contender]:
    ours, here = "load_qdeploy.py", Path(sys.executable)
    found = [
        Contender("qdeploy", here, ours, work),
        Contender("qdeploy without uvloop", here, ours, work, ["asyncio"]),
    ]
    engines = [e for e in installed() if e.engine == "vllm"]
    if engines:
        name = f"vLLM {engines[0].version} bench serve"
        found.append(Contender(name, engines[0].python, "load_vllm.py", work))
    else:
        print("vLLM: skipped, it is not installed. To install it: qdeploy engines install vllm")
    if GUIDELLM.installed:
        found.append(Contender(GUIDELLM.name, GUIDELLM.python, "load_guidellm.py", work))
    else:
        print(f"{GUIDELLM.name}: skipped, it is not installed. To install it: {INSTALL_COMMAND}")
    return found


def _weigh(contender: Contender) -> None:
    with mock_server(HELD_PACE) as url:
        contender.begin(url, **HELD)
        report = contender.report()
    contender.stream_bytes = (report["rss_held"] - report["rss_before"]) / HELD["requests"]


def _cost(contender: Contender) -> None:
    with mock_server(STREAMS_PACE) as url:
        contender.begin(url, **STREAMS)
        report = contender.report()
    events = STREAMS["requests"] * STREAMS["tokens"]
    contender.per_event_s.append(report["cpu_s"] / events)
    contender.parse_s.append(report.get("parse_s", 0.0) / events)


def _cost_table(contenders: list[Contender]) -> str:
    header = [
        "client",
        "CPU per event",
        "of vLLM's",
        "of guidellm's",
        "parsed after the run",
        "memory per stream",
    ]
    rows = []
    for c in contenders:
        cost = min(c.per_event_s)
        ratios = [_ratio(cost, contenders, runner) for runner in ("load_vllm.py", "load_guidellm.py")]
        after = f"{min(c.parse_s) * 1e6:.1f} µs" if any(c.parse_s) else "–"
        rows.append([c.name, f"{cost * 1e6:.1f} µs", *ratios, after, f"{c.stream_bytes / 1e3:.1f} kB"])
    return table(header, rows)


def _ratio(cost: float, contenders: list[Contender], runner: str) -> str:
    theirs = [min(c.per_event_s) for c in contenders if c.runner == runner]
    return f"{cost / theirs[0]:.2f}×" if theirs else "–"


def _latency_table(contenders: list[Contender], socket: Contender, ceiling: Ceiling) -> str:
    header = ["client", "load", "p50 added", "p99 added", "p50, p99 of the socket", "rate off by", "failed"]
    half = 0.5 / ceiling.share(1.0, OPEN["tokens"])
    rows = [_latencies(c, socket, OPEN_RATE) for c in contenders]
    return table(header, [*rows, _latencies(contenders[0], socket, half, "half of its ceiling, ")])


def _latencies(contender: Contender, socket: Contender, rate: float, load: str = "") -> list[str]:
    """Of the round in which the client added least at p99."""
    rounds = [_beside_a_socket(contender, socket, rate) for _ in range(ROUNDS)]
    found = min(rounds, key=lambda found: found.added_ms[1])
    return [
        contender.name,
        f"{load}{rate:.0f}/s of {OPEN['tokens']}",
        *(f"{value:+.2f} ms" for value in found.added_ms),
        ", ".join(f"{value:.2f}" for value in found.socket_ms) + " ms",
        f"{found.rate_error:.2%}",
        str(found.failed),
    ]


def _beside_a_socket(contender: Contender, socket: Contender, rate: float) -> Added:
    with mock_server(OPEN_PACE) as url:
        contender.begin(url, requests=round(rate * OPEN_S), rate=rate, **OPEN)
        socket.begin(url, **PROBE)
        report, probe = contender.report(), socket.report()
    found, reference = _percentiles(report), _percentiles(probe)
    began = sorted(report["began_s"])
    achieved = (len(began) - 1) / (began[-1] - began[0])
    return Added(found - reference, reference, abs(achieved / rate - 1), len(report["errors"]))


def _percentiles(report: Report) -> NDArray[np.float64]:
    """p50 and p99 of the time to first token, in ms."""
    return np.quantile(np.array(report["first_token_s"]) * 1e3, [0.5, 0.99])


def _many_table(contender: Contender) -> str:
    with mock_server(MANY_PACE) as url:
        contender.begin(url, **MANY)
        found = contender.report()
    events = MANY["requests"] * MANY["tokens"]
    header = ["client", "most at once", "events", "lost", "misattributed", "failed", "processor"]
    row = [contender.name, f"{found['peak']:,}", f"{events:,}"]
    row += [str(found[key]) for key in ("lost", "misattributed", "failed")]
    return table(header, [[*row, f"{found['cpu_s'] / found['seconds']:.0%}"]])
