"""That time grows in proportion to layers and to tokens."""

from __future__ import annotations

from pathlib import Path

from benchmarks.runs import Calibration, run_qdeploy
from benchmarks.synthetic import save_llama
from benchmarks.table import gibibytes, table

LAYERS, SAMPLES, LENGTH = 6, 16, 512
SIZES = ((1, 1), (2, 1), (4, 1), (1, 2), (1, 4))
"""Times as many layers, times as many tokens."""


def linear(work: Path) -> None:
    """Print time per layer and token over sizes of a synthetic Llama."""
    print(f"\n## Linear cost: a random Llama of {LAYERS} layers and more\n")
    rows = [_row(work / f"linear-{layers}-{samples}", layers, samples) for layers, samples in SIZES]
    header = ["layers", "tokens", "quantizing", "per layer and token", "÷ first", "peak"]
    first = rows[0][1]
    print(table(header, [[*cells[:4], f"{cost / first:.2f}×", cells[4]] for cells, cost in rows]))
    print("Load, solve, pack and write do not depend on the tokens, so more of them make each cheaper.")


def _row(folder: Path, more_layers: int, more_samples: int) -> tuple[list[str], float]:
    """The cells of a row, and its seconds per layer and token."""
    layers, samples = LAYERS * more_layers, SAMPLES * more_samples
    model = save_llama(folder / "model", layers)
    run = run_qdeploy(Calibration(model, samples, folder, LENGTH), folder / "run", method="gptq")
    cost = run.seconds / (layers * samples * LENGTH)
    cells = [
        str(layers),
        f"{samples} × {LENGTH}",
        f"{run.seconds:.1f} s",
        f"{1e6 * cost:.2f} µs",
        gibibytes(run.process.peak_bytes),
    ]
    return cells, cost
