"""What four bits cost in accuracy, for us and for the peers, on the same calibration tokens."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks import texts
from benchmarks.divergence import Scorer
from benchmarks.peer import PEERS
from benchmarks.runs import GROUP_SIZE, SAMPLES, Calibration, Run, run_peer, run_qdeploy
from benchmarks.speed import skipped
from benchmarks.table import table

Scores = Mapping[str, float]
OURS, ROUNDED = "qdeploy GPTQ", "round to nearest"
DEFAULTS, BEST = "at its defaults", "at its best"


def quality(model: Path, work: Path, data: Path | None, done: Mapping[str, Run]) -> None:
    """Print the KL divergence from the 16-bit model, text by text.

    Args:
        data: folder with WikiText-2 and Penn Treebank; without it they are left out.
        done: package → the run of that peer at its defaults, where there is one already.
    """
    print(f"\n## Quality of 4 bits, group {GROUP_SIZE}: KL divergence from the 16-bit model\n")
    windows = {name: texts.windows(text, model) for name, text in texts.scored_texts(data).items()}
    scorer = Scorer(model, windows)
    scores: dict[str, Scores] = {}
    for name, run in _runs(Calibration(model, SAMPLES, work / "quality"), work / "quality", done):
        scores[name] = scorer.score(run.folder)
        print(f"{name}: {', '.join(f'{kl:.4f}' for kl in scores[name].values())}", file=sys.stderr)
    rows = [[name, *(f"{kl:.4f}" for kl in kls.values())] for name, kls in scores.items()]
    print(table(["", *windows], rows + _ratios(scores)))
    print(
        f"Nats per token over the whole vocabulary, float32, no BOS; calibrated on the first {SAMPLES} × "
        f"{texts.SEQUENCE_LENGTH} tokens of Python {platform.python_version()}'s documentation; "
        + ", ".join(f"{name}: {len(tokens)} windows" for name, tokens in windows.items())
        + "."
    )
    for name in texts.FILES.keys() - windows.keys():
        print(f"{name}: left out. Name a folder that holds it ({texts.FILES[name]}) with --data.")
    skipped()


def _runs(calibration: Calibration, work: Path, done: Mapping[str, Run]) -> Iterator[tuple[str, Run]]:
    """Name and run of every row."""
    for name, method in ((ROUNDED, "rtn"), (OURS, "gptq")):
        for grid in ("symmetric", "asymmetric"):
            folder = work / f"{method}-{grid}"
            yield (
                f"{name}, {grid}",
                run_qdeploy(calibration, folder, method=method, symmetric=grid == "symmetric"),
            )
    for peer in PEERS:
        if peer.installed:
            run = done.get(peer.package) or run_peer(peer, {}, calibration, work / peer.package)
            yield f"{peer.name} {DEFAULTS}", run
            chosen = ", ".join(f"{key} {value}" for key, value in peer.best.items())
            best = run_peer(peer, peer.best, calibration, work / f"{peer.package}-best")
            yield f"{peer.name} {BEST} ({chosen})", best


def _ratios(scores: Mapping[str, Scores]) -> list[list[str]]:
    """Rows that set our symmetric GPTQ against the best of each kind."""
    ours = scores[f"{OURS}, symmetric"]
    against = {
        ROUNDED: [scores[f"{ROUNDED}, symmetric"]],
        f"the better peer {DEFAULTS}": [kls for name, kls in scores.items() if DEFAULTS in name],
        f"the better peer {BEST}": [kls for name, kls in scores.items() if BEST in name],
    }
    return [
        [f"{OURS}, symmetric ÷ {name}", *(f"{ours[t] / min(kls[t] for kls in others):.2f}×" for t in ours)]
        for name, others in against.items()
        if others
    ]
