"""Load clients against one mock server: what they cost, and what they add to what they measure.

Each runs in a process of its own, in its own environment, and sends the same requests. Ours is used as
`qdeploy bench` uses it; of vLLM's benchmark and of guidellm it is the function that sends one request and
reads its stream, without their tokenizers, schedulers and reports.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.peer import GUIDELLM, INSTALL_COMMAND
from benchmarks.process import ProcessError
from benchmarks.runs import RUNNERS
from benchmarks.table import table
from qdeploy.bench.load.ceiling import Ceiling, measure_ceiling
from qdeploy.bench.mock_server import Pace, mock_server
from qdeploy.engines.environment import installed
from qdeploy.files import read_json, write_json

ROUNDS = 2
"""Of each measurement, the clients in turn; the least counts, because noise only adds."""

STREAMS = {"requests": 256, "tokens": 128, "users": 32}
STREAMS_PACE = Pace(first_token_s=0.02, gap_s=0.004)
"""An event comes when the one before has been read, as it does from an engine."""

HELD = {"requests": 1000, "tokens": 4, "rate": 500.0, "weigh_at_s": 4.0}
HELD_PACE = Pace(first_token_s=0.1, gap_s=2.0)

OPEN = {"tokens": 64}
OPEN_PACE = Pace(first_token_s=0.005, gap_s=0.004)
OPEN_RATE, OPEN_S = 100.0, 6.0
PROBE = {"requests": 700, "tokens": 1}

MANY = {"requests": 10_000, "tokens": 20, "rate": 1250.0, "weigh_at_s": 10.0}
MANY_PACE = Pace(first_token_s=0.5, gap_s=1.0)

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Added:
    """p50 and p99 of the time to first token over a socket's, the socket's, and how far the rate was off."""

    added_ms: NDArray[np.float64]
    socket_ms: NDArray[np.float64]
    rate_error: float


@dataclass
class Contender:
    """A client and what has been measured of it."""

    name: str
    python: Path
    runner: str
    options: tuple[str, ...] = ()
    per_event_s: list[float] = field(default_factory=list)
    parse_s: list[float] = field(default_factory=list)
    stream_bytes: list[float] = field(default_factory=list)


def client(work: Path) -> None:
    """Print the tables of the load clients."""
    contenders = _contenders()
    busy = psutil.cpu_percent(1.0)
    for _ in range(ROUNDS):
        for contender in contenders:
            _cost(contender, work)
    print("\n## Load clients: processor time and memory\n")
    print(_cost_table(contenders))
    print(
        f"\n{STREAMS['users']} streams at once, an event each 4 ms; processors were {busy:.0f} % busy before."
    )
    ceiling = measure_ceiling()
    print("\n## Load clients: what they add to the time to first token\n")
    print(_latency_table(contenders, ceiling, work))
    print(
        "\nAdded: the client's percentile less that of a blocking socket that asks the same server meanwhile."
    )
    print("\n## 10,000 streams at once\n")
    print(_many_table(contenders[0], work))


def _contenders() -> list[Contender]:
    ours, here = "load_qdeploy.py", Path(sys.executable)
    found = [Contender("qdeploy", here, ours), Contender("qdeploy without uvloop", here, ours, ("asyncio",))]
    engines = [e for e in installed() if e.engine == "vllm"]
    if engines:
        found.append(Contender(f"vLLM {engines[0].version} bench serve", engines[0].python, "load_vllm.py"))
    else:
        print("vLLM: skipped, it is not installed. To install it: qdeploy engines install vllm")
    if GUIDELLM.installed:
        found.append(Contender(GUIDELLM.name, GUIDELLM.python, "load_guidellm.py"))
    else:
        print(f"{GUIDELLM.name}: skipped, it is not installed. To install it: {INSTALL_COMMAND}")
    return found


def _cost(contender: Contender, work: Path) -> None:
    with mock_server(STREAMS_PACE) as url:
        report = _run(contender, work, url, **STREAMS)
    events = STREAMS["requests"] * STREAMS["tokens"]
    contender.per_event_s.append(report["cpu_s"] / events)
    contender.parse_s.append(report.get("parse_s", 0.0) / events)
    with mock_server(HELD_PACE) as url:
        report = _run(contender, work, url, **HELD)
    contender.stream_bytes.append((report["rss_held"] - report["rss_before"]) / HELD["requests"])


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
        rows.append([c.name, f"{cost * 1e6:.1f} µs", *ratios, after, f"{min(c.stream_bytes) / 1e3:.1f} kB"])
    return table(header, rows)


def _ratio(cost: float, contenders: list[Contender], runner: str) -> str:
    theirs = [min(c.per_event_s) for c in contenders if c.runner == runner]
    return f"{cost / theirs[0]:.2f}×" if theirs else "–"


def _latency_table(contenders: list[Contender], ceiling: Ceiling, work: Path) -> str:
    header = ["client", "load", "p50 added", "p99 added", "p50 of the socket", "p99 of it", "rate off by"]
    half = 0.5 / ceiling.share(1.0, OPEN["tokens"])
    rows = [_latencies(c, OPEN_RATE, work) for c in contenders]
    return table(header, [*rows, _latencies(contenders[0], half, work, "half of its ceiling, ")])


def _latencies(contender: Contender, rate: float, work: Path, load: str = "") -> list[str]:
    """Of the round in which the client added least at p99."""
    found = min((_beside_a_socket(contender, rate, work) for _ in range(ROUNDS)), key=lambda f: f.added_ms[1])
    return [
        contender.name,
        f"{load}{rate:.0f}/s of {OPEN['tokens']}",
        *(f"{value:+.2f} ms" for value in found.added_ms),
        *(f"{value:.2f} ms" for value in found.socket_ms),
        f"{found.rate_error:.2%}",
    ]


def _beside_a_socket(contender: Contender, rate: float, work: Path) -> Added:
    socket = Contender("socket", Path(sys.executable), "load_socket.py")
    with (
        mock_server(OPEN_PACE) as url,
        _running(contender, work, url, requests=round(rate * OPEN_S), rate=rate, **OPEN) as report,
    ):
        probe = _run(socket, work, url, **PROBE)
    found, reference = _percentiles(report), _percentiles(probe)
    began = sorted(report["began_s"])
    achieved = (len(began) - 1) / (began[-1] - began[0])
    return Added(found - reference, reference, abs(achieved / rate - 1))


def _percentiles(report: Report) -> NDArray[np.float64]:
    """p50 and p99 of the time to first token, in ms."""
    return np.quantile(np.array(report["first_token_s"]) * 1e3, [0.5, 0.99])


def _many_table(contender: Contender, work: Path) -> str:
    with mock_server(MANY_PACE) as url:
        found = _run(contender, work, url, **MANY)
    per_stream = (found["rss_held"] - found["rss_before"]) / MANY["requests"]
    header = [
        "client",
        "most at once",
        "events",
        "lost",
        "misattributed",
        "failed",
        "processor",
        "memory per stream",
    ]
    row = [contender.name, f"{found['peak']:,}", f"{MANY['requests'] * MANY['tokens']:,}"]
    row += [str(found[key]) for key in ("lost", "misattributed", "failed")]
    return table(header, [[*row, f"{found['cpu_s'] / found['seconds']:.0%}", f"{per_stream / 1e3:.1f} kB"]])


def _run(contender: Contender, work: Path, url: str, **fields: Any) -> Report:
    with _running(contender, work, url, **fields) as report:
        pass
    return report


@contextmanager
def _running(contender: Contender, work: Path, url: str, **fields: Any) -> Iterator[dict[str, Any]]:
    """Runs the block while the client has its load; what is yielded holds the client's report afterwards.

    Raises:
        ProcessError: it failed.
    """
    job, report, log = (work / f"{contender.runner}.{suffix}" for suffix in ("job", "report", "log"))
    defaults = {"users": 1, "rate": None, "weigh_at_s": None, "url": url, "report": str(report)}
    write_json(job, defaults | fields)
    command = [str(contender.python), str(RUNNERS / contender.runner), str(job), *contender.options]
    found: dict[str, Any] = {}
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process,
    ):
        assert process.stdout
        process.stdout.readline()
        yield found
    if process.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise ProcessError(f"`{' '.join(command)}` failed with exit code {process.returncode}:\n{tail}")
    found |= read_json(report)
