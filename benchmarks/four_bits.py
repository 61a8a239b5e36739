"""Four bits by us and by the peers at their best, on equal tokens: with and without zero points."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import texts
from benchmarks.calibration import TRUSTED, write_own
from benchmarks.divergence import Scorer
from benchmarks.peer import ALL_PEERS, AUTOROUND, Peer
from benchmarks.runs import (
    GROUP_SIZE,
    PLAIN,
    SAMPLES,
    Calibration,
    Run,
    Settings,
    run_peer,
    run_qdeploy,
    told,
)
from benchmarks.speed import skipped
from benchmarks.table import table

WINDOWS = 5
"""Of each text."""
OWN = 2 * SAMPLES
"""Samples of the model's own text."""
GRIDS = {"symmetric": True, "with zero points": False}

Stacks = Sequence[tuple[str, Settings]]
ON_DOCUMENTATION: Stacks = (("gptq", PLAIN), ("gptq", {}), ("quarot", {}))
ON_BOTH: Stacks = (("gptq", PLAIN), ("gptq", TRUSTED), ("quarot", TRUSTED))
"""What we do, with settings that are not its defaults; first plainly."""


@dataclass(frozen=True)
class Row:
    """Who did it, None for us, and text → KL divergence."""

    peer: Peer | None
    scores: Mapping[str, float]

    @property
    def cells(self) -> list[str]:
        return [f"{kl:.4f}" for kl in self.scores.values()]


def four_bits(model: Path, work: Path, data: Path | None) -> None:
    """Print KL divergences, and our best over the peers', grid by grid and calibration by calibration.

    Args:
        data: folder with WikiText-2, Penn Treebank and C4; without it they are left out.
    """
    scored = texts.scored_texts(data) | (texts.c4(data) if data else {})
    scorer = Scorer(model, {name: texts.windows(text, model, WINDOWS) for name, text in scored.items()})
    own, _ = write_own(model, work)
    documentation = Calibration(model, SAMPLES, work / "documentation")
    both = Calibration(model, SAMPLES, work / "both", own=(own, OWN))
    for title, calibration, stacks in (
        (f"{SAMPLES} samples of documentation", documentation, ON_DOCUMENTATION),
        (f"{SAMPLES} samples of documentation, {OWN} of the model's own text", both, ON_BOTH),
    ):
        for grid, symmetric in GRIDS.items():
            print(f"\n## 4 bits, {grid}, group {GROUP_SIZE}, on {title}: KL divergence\n")
            folder = work / f"{calibration.ids.parent.name}-{symmetric}"
            rows: dict[str, Row] = {}
            for name, peer, run in _runs(calibration, folder, stacks, symmetric=symmetric):
                scores = {text: score.divergence for text, score in scorer.score(run.folder).items()}
                rows[name] = Row(peer, scores)
                print(" | ".join([name, *rows[name].cells]), file=sys.stderr, flush=True)
            print(table(["", *scored], [[name, *row.cells] for name, row in rows.items()] + _ratios(rows)))
    skipped()


def _runs(
    calibration: Calibration, work: Path, stacks: Stacks, *, symmetric: bool
) -> Iterator[tuple[str, Peer | None, Run]]:
    """Name of the row, who does it, and what came out."""
    for i, (method, settings) in enumerate(stacks):
        name = f"qdeploy {method}" + (f" ({told(settings)})" if settings else "")
        folder = work / f"ours-{i}"
        yield (
            name,
            None,
            run_qdeploy(calibration, folder, method=method, symmetric=symmetric, settings=settings),
        )
    for peer in ALL_PEERS:
        if peer.installed:
            name = peer.name + (f" ({told({'': peer.best})})" if peer.best else "")
            chosen = {**peer.best, **({} if symmetric else peer.asymmetric)}
            yield name, peer, run_peer(peer, chosen, calibration, work / peer.package)


def _ratios(rows: Mapping[str, Row]) -> list[list[str]]:
    """Our best stack, one for all texts, over the others' KL, text by text."""
    plain, *stacks = (name for name, row in rows.items() if row.peer is None)
    best = min(stacks, key=lambda name: sum(_over(rows[name], [rows[plain]])))
    others = {
        plain: [rows[plain]],
        "the better GPTQ of a peer": [row for row in rows.values() if row.peer not in (None, AUTOROUND)],
        AUTOROUND.name: [row for row in rows.values() if row.peer is AUTOROUND],
    }
    return [
        [f"{best} ÷ {name}", *(f"{ratio:.2f}×" for ratio in _over(rows[best], found))]
        for name, found in others.items()
        if found
    ]


def _over(ours: Row, others: Sequence[Row]) -> list[float]:
    return [kl / min(other.scores[text] for other in others) for text, kl in ours.scores.items()]
