"""What each stack of methods costs and keeps, scheme by scheme, in one table."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import texts
from benchmarks.divergence import Scorer
from benchmarks.runs import GROUP_SIZE, SAMPLES, Calibration, Run, run_qdeploy
from benchmarks.table import gibibytes, table

FLOATS = ("rtn", "gptq")
SCALED = ("smoothquant+rtn", "smoothquant+gptq", "awq+rtn", "awq+gptq")
FEW_BITS = ("rtn", "gptq", "quip", "spqr")
STACKS = {
    "W8A8": ("gptq", "quarot", "smoothquant+gptq", "rotation+smoothquant+gptq", "rtn", "rotation+rtn"),
    "W4A8": ("gptq", "quarot", "smoothquant+gptq", "rtn"),
    "FP8_DYNAMIC": FLOATS,
    "NVFP4A16": FLOATS,
    "W3A16_ASYM": FEW_BITS,
    "W2A16_ASYM": FEW_BITS,
    "W4A16_ASYM": FLOATS,
    "W4A16": ("rtn", "gptq", "rotation+rtn", "quarot", "ldlq", "hqq", *SCALED),
}
"""Scheme → stacks of methods."""

OWN_GROUPS = {"spqr": 16}
"""Method → its paper's group size, where the others' would not be its own."""


def methods(model: Path, work: Path, data: Path | None) -> None:
    """Print KL divergence, perplexity, size, time and peak memory of every stack in every scheme.

    Args:
        data: folder with WikiText-2, Penn Treebank and C4; without it they are left out.
    """
    print(f"\n## Methods: KL divergence / perplexity, groups of {GROUP_SIZE} where a scheme has groups\n")
    scored = texts.scored_texts(data) | (texts.c4(data) if data else {})
    windows = {name: texts.windows(text, model) for name, text in scored.items()}
    scorer = Scorer(model, windows)
    header = ["", *windows, "weights", "quantizing", "peak"]
    whole = [f"{score.perplexity:.2f}" for score in scorer.score(model).values()]
    rows = [["16 bit", *whole, _size(model), "", ""]]
    calibration = Calibration(model, SAMPLES, work / "methods")
    for scheme, stacks in STACKS.items():
        for stack in stacks:
            group = OWN_GROUPS.get(stack, GROUP_SIZE)
            folder = work / f"{scheme}-{stack}"
            run = run_qdeploy(calibration, folder, method=stack, scheme=scheme, group_size=group)
            rows.append(_row(f"{scheme} {stack}", run, scorer))
            print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    print(table(header, rows))


def _row(name: str, run: Run, scorer: Scorer) -> list[str]:
    found = scorer.score(run.folder).values()
    scored = [f"{score.divergence:.4f} / {_short(score.perplexity)}" for score in found]
    return [name, *scored, _size(run.folder), f"{run.seconds:.1f} s", gibibytes(run.process.peak_bytes)]


def _short(perplexity: float) -> str:
    return f"{perplexity:.2f}" if perplexity < 1000 else f"{perplexity:.1e}"


def _size(folder: Path) -> str:
    return f"{sum(file.stat().st_size for file in folder.glob('*.safetensors')) / 1e6:.0f} MB"
