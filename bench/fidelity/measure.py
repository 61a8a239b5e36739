"""The fidelity half of an evaluation: score the text, and samples where they are wanted, and compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdeploy.bench.fidelity import monte_carlo
from qdeploy.bench.fidelity.disagreements import disagreements
from qdeploy.bench.fidelity.figures import (
    best_divergence,
    check_same_tokens,
    score_windows,
    summarize,
)
from qdeploy.bench.fidelity.kept_windows import KEPT, KeptWindows, asked_of
from qdeploy.bench.fidelity.token_table import TOKENS, read_tokens, write_tokens
from qdeploy.bench.fidelity.windows import Windows
from qdeploy.bench.records import Fidelity, MonteCarlo
from qdeploy.bench.tokenizer import Encoder
from qdeploy.engines.endpoint import Endpoint


@dataclass(frozen=True)
class Scoring:
    """How to score.

    Attributes:
        top_k: log-probabilities kept at each position.
        concurrency: requests in flight.
        samples: continuations that the baseline draws; 0: none.
        chosen: the engine scores the baseline's top K by their ids.
        model: what is asked, in whatever words tell two models apart.
        order: in which windows are sent; None: as they come.
    """

    top_k: int
    concurrency: int
    samples: int
    chosen: bool
    model: Mapping[str, Any]
    order: Sequence[int] | None = None


def measure_fidelity(
    endpoint: Endpoint,
    windows: Windows,
    encoder: Encoder,
    scoring: Scoring,
    folder: Path,
    baseline: Path | None,
) -> Fidelity:
    """Write the token tables into `folder` and return the figures. Windows that were kept there are not sent.

    Args:
        baseline: run folder to compare with; None: this is the baseline, which draws the samples.

    Raises:
        EndpointError: the endpoint fails, or lacks what is asked of it.
        ComparisonError: the baseline scored other tokens, or its tables are broken.
    """
    theirs = read_tokens(baseline) if baseline else None
    if theirs is not None:
        check_same_tokens(windows, theirs)
    chosen = theirs if scoring.chosen else None
    kept = KeptWindows(folder / KEPT, asked_of(scoring.model, windows, scoring.top_k, chosen))
    ours = score_windows(
        endpoint, windows, scoring.top_k, scoring.concurrency, chosen, scoring.order, kept=kept
    )
    write_tokens(folder / TOKENS, ours)
    fidelity = summarize(windows, ours, theirs)
    if theirs is not None:
        kl = best_divergence(theirs, ours)[1].kl
        worst = disagreements(windows, theirs, ours, kl, encoder.tokenizer)
        fidelity = fidelity.model_copy(update={"worst": worst})
    if scoring.samples:
        check = _monte_carlo(endpoint, windows, scoring, folder, baseline)
        fidelity = fidelity.model_copy(update={"monte_carlo": check})
    return fidelity


def _monte_carlo(
    endpoint: Endpoint, windows: Windows, scoring: Scoring, folder: Path, baseline: Path | None
) -> MonteCarlo | None:
    """Score the samples that the baseline has drawn; as the baseline, draw them first."""
    theirs = read_tokens(baseline, monte_carlo.SAMPLES) if baseline else None
    if theirs is None:
        samples = monte_carlo.draw(endpoint, windows, scoring.samples, scoring.concurrency)
    else:
        samples = monte_carlo.continued(windows, theirs)
    chosen = theirs if scoring.chosen else None
    ours = score_windows(
        endpoint, samples, scoring.top_k, scoring.concurrency, chosen, title="Scoring samples"
    )
    write_tokens(folder / monte_carlo.SAMPLES, ours)
    return None if theirs is None else monte_carlo.estimate(windows, ours, theirs)
