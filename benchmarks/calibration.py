"""What calibrating on text that the model writes itself changes, with GPTQ at 4 bits."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import process, texts
from benchmarks.divergence import Scorer
from benchmarks.runs import SAMPLES, Calibration, Settings, quantize, told
from benchmarks.table import table
from qdeploy.recipe import Recipe

TEXTS = 96
WINDOWS = 5
"""Of each text."""
TRUSTED: Settings = {"gptq": {"shrinkage": 0.1, "damp": 0.01}}
"""H as it may be trusted when it comes from text of many kinds."""


@dataclass(frozen=True)
class Case:
    """Samples of the documentation or of the built-in text, beside how many of the model's own."""

    source: str
    samples: int
    own: int
    settings: Settings = field(default_factory=dict)

    def __str__(self) -> str:
        parts = ((self.source, self.samples), ("own", self.own))
        counts = " + ".join(f"{count} {name}" for name, count in parts if count)
        return f"{counts} ({told(self.settings)})" if self.settings else counts


CASES = (
    Case("documentation", SAMPLES, 0),
    Case("documentation", SAMPLES // 2, SAMPLES // 2),
    Case("documentation", SAMPLES, 2 * SAMPLES),
    Case("documentation", SAMPLES, 2 * SAMPLES, TRUSTED),
    Case("builtin", 3 * SAMPLES, 0),
    Case("builtin", SAMPLES, 2 * SAMPLES),
    Case("builtin", SAMPLES, 2 * SAMPLES, TRUSTED),
)


def calibration(model: Path, work: Path, data: Path | None) -> None:
    """Print KL divergences for calibration with and without the model's own text.

    Args:
        data: folder with WikiText-2, Penn Treebank and C4; without it they are left out.
    """
    print("\n## Samples of 512 tokens, of a text and of what the model writes itself: KL divergence\n")
    scored = texts.scored_texts(data) | (texts.c4(data) if data else {})
    scorer = Scorer(model, {name: texts.windows(text, model, WINDOWS) for name, text in scored.items()})
    own, seconds = write_own(model, work)
    rows = []
    for i, case in enumerate(CASES):
        run = quantize(_recipe(model, work, own, case), work / f"own-{i}", case.settings)
        rows.append([str(case), *(f"{score.divergence:.4f}" for score in scorer.score(run.folder).values())])
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    print(table(["", *scored], rows))
    print(f"Writing {TEXTS} texts took {seconds:.0f} s.")


def write_own(model: Path, work: Path) -> tuple[Path, float]:
    """A file of texts that the model writes, and the seconds that it takes."""
    own = work / "own.jsonl"
    command = [sys.executable, "-m", "qdeploy", "sample", str(model), "--samples", str(TEXTS), "-o", str(own)]
    return own, process.run(command, work / "sample.txt", work).seconds


def _recipe(model: Path, work: Path, own: Path, case: Case) -> Recipe:
    text = Calibration(model, case.samples, work / f"text-{case.samples}").text
    source = "builtin" if case.source == "builtin" else str(text)
    sources = [f"{source}@{case.samples}", *([f"{own}@{case.own}"] if case.own else [])]
    return Recipe.from_flags(
        str(model),
        group_size="64",
        calibration={"source": sources, "samples": case.samples + case.own, "sequence_length": 512},
    )
