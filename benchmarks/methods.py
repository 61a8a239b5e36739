"""What each stack of methods costs and keeps, scheme by scheme, in one table."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import texts
from benchmarks.divergence import Scorer
from benchmarks.runs import GROUP_SIZE, SAMPLES, Calibration, Run, run_qdeploy
from benchmarks.table import gibibytes, table

SCHEMES = ("W8A8", "W4A16")
TRANSFORMS = ("", "smoothquant+", "awq+", "rotation+")
STACKS = tuple(f"{transforms}{rounder}" for transforms in TRANSFORMS for rounder in ("rtn", "gptq"))


def methods(model: Path, work: Path, data: Path | None) -> None:
    """Print KL divergence, perplexity, size, time and peak memory of every stack in every scheme.

    Args:
        data: folder with WikiText-2 and Penn Treebank; without it they are left out.
    """
    print(f"\n## Methods: KL divergence / perplexity, groups of {GROUP_SIZE} where a scheme has groups\n")
    windows = {name: texts.windows(text, model) for name, text in texts.scored_texts(data).items()}
    scorer = Scorer(model, windows)
    header = ["", *windows, "weights", "quantizing", "peak"]
    whole = [f"{score.perplexity:.2f}" for score in scorer.score(model).values()]
    rows = [["16 bit", *whole, _size(model), "", ""]]
    calibration = Calibration(model, SAMPLES, work / "methods")
    for scheme in SCHEMES:
        for stack in STACKS:
            run = run_qdeploy(calibration, work / f"{scheme}-{stack}", method=stack, scheme=scheme)
            rows.append(_row(f"{scheme} {stack}", run, scorer))
            print(" ".join(rows[-1]), file=sys.stderr)
    print(table(header, rows))


def _row(name: str, run: Run, scorer: Scorer) -> list[str]:
    found = scorer.score(run.folder).values()
    scored = [f"{score.divergence:.4f} / {_short(score.perplexity)}" for score in found]
    return [name, *scored, _size(run.folder), f"{run.seconds:.1f} s", gibibytes(run.process.peak_bytes)]


def _short(perplexity: float) -> str:
    return f"{perplexity:.2f}" if perplexity < 1000 else f"{perplexity:.1e}"


def _size(folder: Path) -> str:
    return f"{sum(file.stat().st_size for file in folder.glob('*.safetensors')) / 1e6:.0f} MB"
