"""What each stack of methods costs and keeps, scheme by scheme, in one table."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks import texts
from benchmarks.divergence import Scorer
from benchmarks.runs import GROUP_SIZE, SAMPLES, Calibration, Run, Settings, run_qdeploy, told
from benchmarks.table import gibibytes, table
from qdeploy.exporters.vllm import VllmExporter
from qdeploy.files import read_json
from qdeploy.schemes import INT8_PER_TOKEN, preset
from qdeploy.serving import TYPICAL

WINDOWS = 5
"""Of each text. There are many rows, and what they are compared by is paired."""

STACKS = {
    "W8A16": ("rtn", "gptq", "ldlq", "hqq", "zeroquant", "autoround", "spqr", "awq+gptq", "quarot", "quip"),
    "W4A16": (
        *("rtn", "gptq", "ldlq", "hqq", "zeroquant", "autoround", "spqr", "quip"),
        *("smoothquant+rtn", "smoothquant+gptq", "awq+rtn", "awq+gptq", "rotation+rtn", "quarot"),
    ),
    "W4A16_ASYM": ("rtn", "gptq", "hqq", "autoround", "awq+rtn", "awq+gptq", "quarot"),
    "W3A16_ASYM": (
        *("rtn", "gptq", "ldlq", "hqq", "zeroquant", "autoround", "spqr", "quip"),
        *("awq+rtn", "awq+gptq", "quarot"),
    ),
    "W2A16_ASYM": (
        *("rtn", "gptq", "ldlq", "hqq", "zeroquant", "autoround", "spqr", "quip"),
        *("awq+rtn", "awq+gptq", "quarot"),
    ),
    "W8A8": (
        *("rtn", "gptq", "smoothquant+rtn", "smoothquant+gptq", "awq+gptq"),
        *("rotation+rtn", "quarot", "rotation+smoothquant+gptq"),
    ),
    "W4A8": ("rtn", "gptq", "smoothquant+rtn", "smoothquant+gptq", "quarot"),
    "W3A8": ("rtn", "gptq", "smoothquant+rtn", "smoothquant+gptq", "quarot"),
    "FP8_DYNAMIC": ("rtn", "gptq"),
    "NVFP4A16": ("rtn", "gptq"),
}
"""Scheme → stacks of methods."""

CACHED = ("W8A16", "W4A16", "FP8_DYNAMIC")
"""Schemes that are also tried with keys and values in FP8."""

STUDIED = {"W3A8": "W3A16"}
"""What no engine has a kernel for → the scheme of its weights; inputs are rounded where it is scored."""

OWN_GROUPS = {"spqr": 16}
"""Method → its paper's group size, where the others' would not be its own."""

SETTINGS: dict[str, Settings] = {
    "zeroquant": {"zeroquant": {"rank": 8}},
    "autoround": {"autoround": {"iterations": 50}},
}
"""Stack → settings that are not its defaults: with LoRC; AutoRound's light recipe."""


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    scheme: str
    stack: str
    settings: Settings = field(default_factory=dict)
    kv_cache: str | None = None

    def __str__(self) -> str:
        cache = f", cache {self.kv_cache}" if self.kv_cache else ""
        return f"{self.scheme} {self.stack}" + (f" ({told(self.settings)})" if self.settings else "") + cache


def cases() -> Iterator[Case]:
    """All rows, in order."""
    for scheme, stacks in STACKS.items():
        for stack in stacks:
            yield Case(scheme, stack, SETTINGS.get(stack, {}))
    for scheme in CACHED:
        yield Case(scheme, "gptq", kv_cache="fp8")


def methods(model: Path, work: Path, data: Path | None) -> None:
    """Print KL divergence, perplexity, size, time, peak memory and engine status of every stack and scheme.

    Args:
        data: folder with WikiText-2, Penn Treebank and C4; without it they are left out.
    """
    print(f"\n## Methods: KL divergence / perplexity, groups of {GROUP_SIZE} where a scheme has groups\n")
    scored = texts.scored_texts(data) | (texts.c4(data) if data else {})
    scored.pop(texts.CODE)
    windows = {name: texts.windows(text, model, WINDOWS) for name, text in scored.items()}
    scorer = Scorer(model, windows)
    header = ["", *windows, "weights", "CPU time", "peak", "vLLM on H100, CPU"]
    whole = [f"– / {score.perplexity:.2f}" for score in scorer.score(model).values()]
    rows = [["16 bit", *whole, _size(model), "", "", ""]]
    calibration = Calibration(model, SAMPLES, work / "methods")
    for case in cases():
        rows.append(_row(case, _run(case, calibration, work), scorer))
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    print(table(header, rows))


def _run(case: Case, calibration: Calibration, work: Path) -> Run:
    return run_qdeploy(
        calibration,
        work / f"{case.scheme}-{case.stack}-{case.kv_cache}",
        method=case.stack,
        scheme=STUDIED.get(case.scheme, case.scheme),
        group_size=OWN_GROUPS.get(case.stack, GROUP_SIZE),
        settings=case.settings,
        kv_cache=case.kv_cache,
    )


def _row(case: Case, run: Run, scorer: Scorer) -> list[str]:
    found = scorer.score(run.folder, INT8_PER_TOKEN if case.scheme in STUDIED else None).values()
    scored = [f"{score.divergence:.4f} / {_short(score.perplexity)}" for score in found]
    cost = [f"{run.process.cpu_seconds:.0f} s", gibibytes(run.process.peak_bytes)]
    return [str(case), *scored, _size(run.folder), *cost, _status(case, run)]


def _status(case: Case, run: Run) -> str:
    """What the layers are on a GPU and on a CPU."""
    if case.scheme in STUDIED:
        return "no such kernel"
    if read_json(run.folder / "qdeploy.json")["serving"] == "reference":
        return "reference"
    scheme, exporter = preset(case.scheme), VllmExporter()
    if scheme.element is None and scheme.group_size:
        scheme = replace(scheme, group_size=GROUP_SIZE)
    (shape,) = TYPICAL.values()
    found = [exporter.support(scheme, *shape, gpu=gpu).kind for gpu in ("h100", "cpu-avx512")]
    return ", ".join(dict.fromkeys(found))


def _short(perplexity: float) -> str:
    return f"{perplexity:.2f}" if perplexity < 1000 else f"{perplexity:.1e}"


def _size(folder: Path) -> str:
    return f"{sum(file.stat().st_size for file in folder.glob('*.safetensors')) / 1e6:.0f} MB"
