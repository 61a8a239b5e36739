"""What few bits cost in accuracy, for us and for the peers, on the same calibration tokens."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks import texts
from benchmarks.divergence import Scorer
from benchmarks.peer import PEERS
from benchmarks.runs import GROUP_SIZE, PLAIN, SAMPLES, Calibration, Run, run_peer, run_qdeploy
from benchmarks.speed import PLAINLY, skipped
from benchmarks.table import table

Scores = Mapping[str, float]
OURS, ROUNDED = "qdeploy GPTQ", "round to nearest"
FORMATS = {
    "4 bits, symmetric": ("W4A16", True),
    "4 bits, asymmetric": ("W4A16", False),
    "3 bits, asymmetric": ("W3A16", False),
    "2 bits, asymmetric": ("W2A16", False),
}
FOUR = "4 bits, symmetric"
"""What the peers make."""
DEFAULTS, BEST = "at its defaults", "at its best"


def quality(model: Path, work: Path, data: Path | None, done: Mapping[str, Run]) -> None:
    """Print the KL divergence from the 16-bit model, text by text.

    Args:
        data: folder with WikiText-2 and Penn Treebank; without it they are left out.
        done: name → run, of the peers at their defaults and of ours without more than they do, where there
            is one already.
    """
    print(f"\n## Quality at group {GROUP_SIZE}: KL divergence from the 16-bit model\n")
    windows = {name: texts.windows(text, model) for name, text in texts.scored_texts(data).items()}
    scorer = Scorer(model, windows)
    scores: dict[str, Scores] = {}
    for name, run in _runs(Calibration(model, SAMPLES, work / "quality"), work / "quality", done):
        scores[name] = {text: score.divergence for text, score in scorer.score(run.folder).items()}
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
    for form, (scheme, symmetric) in FORMATS.items():
        for name, method in ((ROUNDED, "rtn"), (OURS, "gptq")):
            folder = work / f"{method}-{scheme}-{symmetric}"
            yield (
                f"{name}, {form}",
                run_qdeploy(calibration, folder, method=method, scheme=scheme, symmetric=symmetric),
            )
    folder = work / "gptq-plain"
    yield PLAINLY, done.get(PLAINLY) or run_qdeploy(calibration, folder, method="gptq", settings=PLAIN)
    for peer in PEERS:
        if peer.installed:
            run = done.get(peer.name) or run_peer(peer, {}, calibration, work / peer.package)
            yield f"{peer.name} {DEFAULTS}", run
            chosen = ", ".join(f"{key} {value}" for key, value in peer.best.items())
            best = run_peer(peer, peer.best, calibration, work / f"{peer.package}-best")
            yield f"{peer.name} {BEST} ({chosen})", best


def _ratios(scores: Mapping[str, Scores]) -> list[list[str]]:
    """Rows that set our GPTQ against rounding to nearest, and against the best of each kind of peer."""
    rows = [_ratio(scores, f"{OURS}, {form}", ROUNDED, [scores[f"{ROUNDED}, {form}"]]) for form in FORMATS]
    for kind in (DEFAULTS, BEST):
        others = [kls for name, kls in scores.items() if kind in name]
        if others:
            rows += [
                _ratio(scores, ours, f"the better peer {kind}", others)
                for ours in (f"{OURS}, {FOUR}", PLAINLY)
            ]
    return rows


def _ratio(scores: Mapping[str, Scores], ours: str, name: str, others: Sequence[Scores]) -> list[str]:
    """Our KL over the least of others, text by text."""
    cells = (f"{kl / min(kls[text] for kls in others):.2f}×" for text, kl in scores[ours].items())
    return [f"{ours} ÷ {name}", *cells]
