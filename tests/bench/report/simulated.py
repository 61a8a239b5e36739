"""A campaign folder as the line leaves it, with load runs of a simulated engine: inputs, not measurements.

Times are drawn, but all figures, tables, runs and sweeps are made by the load generator's own code.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from qdeploy.bench.load.figures.metrics import peak_in_flight, summarize
from qdeploy.bench.load.figures.objective import judge
from qdeploy.bench.load.figures.outcome import Outcome
from qdeploy.bench.load.figures.steady import steady_window
from qdeploy.bench.load.run import Measurement, save
from qdeploy.bench.load.series import sweep
from qdeploy.bench.load.series.series import Series
from qdeploy.bench.load.spec import LoadSpec
from qdeploy.bench.load.workload.arrivals import arrival_times
from qdeploy.bench.load.workload.dialect import Dialect
from qdeploy.bench.load.workload.target import Target
from qdeploy.bench.records import SERIES, Candidate, Disagreement, Estimate, Fidelity, TaskScore
from qdeploy.files import write_json, write_text

from .conftest import checkpoint, fidelity, record, task_score

SLOTS = 8
"""Requests that the engine has in hand at once."""

SPEEDS = {"baseline": 24.0, "w8a8": 17.0, "w4a16-gptq": 14.0, "w4a16-asym": 15.5}
"""Milliseconds a token."""

DRIFT = {"baseline": 0.0, "w8a8": 0.004, "w4a16-gptq": 0.024, "w4a16-asym": 0.019}
"""KL from the baseline."""

HOSTILE = (
    "<script>alert(1)</script>",
    "</style><img src=//x.example/y onerror=alert(1)>",
    "\u202egnp.exe",
    "\x00\x1b[31m",
    '"><a href=javascript:alert(1)>',
    "{{ 7 * 7 }}",
    " \n\t ",
    "&lt;b&gt;",
    "\ufffd",
    "Ω≈ç√",
)


def simulate(spec: LoadSpec, ms_per_token: float) -> Measurement:
    """What the client would have recorded: first come, first served, SLOTS at once; a token a chunk."""
    rng = np.random.default_rng(spec.seed)
    users = [0.0] * (spec.concurrency or 0)
    due = arrival_times(spec.arrival, spec.rate, spec.requests, 0) / 1e6 if spec.rate else None
    slots = [0.0] * SLOTS
    outcomes = []
    for index in range(spec.requests):
        sent = heapq.heappop(users) if due is None else float(due[index])
        begun = max(heapq.heappop(slots), sent)
        gaps = ms_per_token * rng.gamma(30, 1 / 30, spec.output_tokens - 1)
        times = (
            begun
            + (50 + 2.5 * ms_per_token) * rng.gamma(20, 1 / 20)
            + np.concatenate([[0.0], np.cumsum(gaps)])
        )
        heapq.heappush(slots, float(times[-1]))
        heapq.heappush(users, float(times[-1]))
        outcomes.append(outcome(index, sent, times.tolist(), spec))
    result = summarize(spec, outcomes, peak_in_flight(outcomes))
    result.steady = steady_window(outcomes, spec.concurrency)
    if spec.limits:
        result.slo = judge(spec.limits, outcomes, result.duration_s)
    return Measurement(result, outcomes, Target("http://127.0.0.1:8000/v1", "m", None, Dialect()), 0, [])


def outcome(index: int, sent_ms: float, times_ms: Sequence[float], spec: LoadSpec) -> Outcome:
    """A request whose tokens come at the times, one a chunk."""
    sent, stamps = int(sent_ms * 1e6), [int(ms * 1e6) for ms in times_ms]
    return Outcome(
        index=index,
        scheduled_ns=sent,
        dispatched_ns=sent,
        sent_ns=sent,
        headers_ns=sent,
        end_ns=stamps[-1],
        first_token_ns=stamps[0],
        last_token_ns=stamps[-1],
        prompt_tokens=spec.prompt_tokens,
        output_tokens=spec.output_tokens,
        chunk_ns=stamps,
        chunk_tokens=[1] * len(stamps),
    )


def load_run(folder: Path, name: str, requests: int = 400) -> None:
    """A load run of the simulated engine."""
    spec = LoadSpec(rate=3.0, requests=requests, output_tokens=32)
    save(simulate(spec, SPEEDS[name]), spec, folder, record("bench", name, name != "baseline").engine)


def swept(folder: Path, name: str, searching: bool) -> None:
    """A sweep, or the search of the highest rate within an objective, as `qdeploy bench -o` leaves it."""
    slo = "p90_ttft=400ms,p90_e2e=1500ms" if searching else None
    template = LoadSpec(concurrency=1, requests=150, output_tokens=32, slo=slo)
    series = Series(template, partial(simulate, ms_per_token=SPEEDS[name]), folder)
    (sweep.search if searching else sweep.sweep)(series)
    write_text(folder / SERIES, sweep.summarize_series(series.results).model_dump_json(indent=2) + "\n")


def places(count: int = 10) -> list[Disagreement]:
    """Places of disagreement in texts that would be markup, and would reorder the page, if they could."""
    return [
        Disagreement(
            window=i,
            position=40 + i,
            kl=3.0 / (i + 1),
            context=f"def f(a, b):\n    if a < b and c > d:\n        return '{HOSTILE[i % len(HOSTILE)]}'",
            token=HOSTILE[(i + 1) % len(HOSTILE)],
            p_baseline=0.71 - 0.05 * i,
            p_variant=0.02,
            baseline=[
                Candidate(token=t, p=p)
                for t, p in ((HOSTILE[(i + 1) % len(HOSTILE)], 0.71 - 0.05 * i), (" b", 0.1), ("\n", 0.03))
            ],
            variant=[Candidate(token=" b", p=0.62), Candidate(token=" c", p=0.2)],
        )
        for i in range(count)
    ]


def _fidelity(name: str) -> Fidelity:
    found = fidelity(name != "baseline")
    if name == "baseline":
        return found
    mean = DRIFT[name]
    kl = Estimate(value=mean, low=mean * 0.9, high=mean * 1.12)
    spread = np.random.default_rng(0).gamma(6, mean / 6, found.windows).tolist()
    changes = {"kl_lower_bound": kl, "kl_intersection": kl, "per_window_kl": spread, "worst": places()}
    return found.model_copy(update=changes)


def _task(name: str) -> TaskScore:
    score = task_score(name != "baseline")
    if score.difference:
        loss = DRIFT[name] * 0.8
        score.difference = Estimate(value=-loss, low=-loss - 0.012, high=-loss + 0.012)
    return score


def simulated_campaign(folder: Path, sweeps: bool = True) -> Path:
    """A campaign over SPEEDS, each with load, sweep or search, fidelity and a task."""
    entries = []
    for name in SPEEDS:
        home = folder / "variants" / name
        checkpoint(home / "checkpoint", name != "baseline")
        load_run(home / "bench", name)
        if sweeps:
            swept(home / "series", name, searching=True)
        (home / "eval").mkdir()
        long = {"items_sha256": "0123456789abcdef" * 8}
        parts = {"fidelity": _fidelity(name), "tasks": [_task(name)], "settings": long}
        record("eval", name, name != "baseline", **parts).save(home / "eval")
        kind = "baseline" if name == "baseline" else "quantized"
        entries.append({"name": name, "kind": kind, "checkpoint": f"variants/{name}/checkpoint"})
    write_json(folder / "campaign.json", {"plan_text": "model: SmolLM2\n", "variants": entries})
    return folder
