"""Which layers an engine misreads, when what it serves is not what the checkpoint says.

HTTP gives log-probabilities only, but each misread layer changes them in its own way. So the ways in which
loaders err (`misreadings`) are tried here on all layers, on all layers of a kind and on each layer, and the
change of the log-probabilities is compared with the served one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qdeploy.bench.misreadings import Misreading, misreadings
from qdeploy.bench.reference import Array, rms, token_logprobs
from qdeploy.formats.dequantize import dequantized_model
from qdeploy.formats.packed import Packed
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.progress import progress
from qdeploy.schemes import Scheme

SIMILAR = 0.8
SHARE_LEFT = 0.25
"""Least cosine, and largest remainder as a share of what was observed, of what is named. Any two faults that
destroy a model change log-probabilities alike, so the cosine alone accuses at random (docs/verify.md)."""
SHOWN = 3
SCREENED = 32
"""Tokens at the window's start on which every candidate is tried; fewer cost less."""
FINALISTS = 8
"""Candidates, those that leave least, that are tried on the whole window."""
SEARCH_S = 600.0
"""Seconds after which candidates are left untried: one forward each, and a large model has thousands."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Layers that may be misread alike. `where` names them for people."""

    where: str
    misreading: str
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Suspect:
    """A misreading that changes the log-probabilities as served.

    Attributes:
        similarity: cosine between its change and the served one, −1 … 1.
        remainder: root mean square of served − misread, in nats: what it leaves unexplained.
    """

    where: str
    misreading: str
    similarity: float
    remainder: float


@dataclass(frozen=True, slots=True)
class Search:
    """What came of trying `tried` of `candidates` misreadings, at most SHOWN suspects, best first."""

    suspects: list[Suspect]
    tried: int
    candidates: int

    def describe(self) -> str:
        """A sentence for the error message, with a line per suspect."""
        tried = f"{self.tried} of {self.candidates} misreadings tried"
        if not self.suspects:
            return f"No misreading of a single layer or of all alike explains it ({tried})."
        lines = "".join(
            f"\n  {found.where}: {found.misreading} (similarity {found.similarity:.2f}, leaves "
            f"{found.remainder:.4f} nats)"
            for found in self.suspects
        )
        return f"What would change them like this, most likely first ({tried}):{lines}"


def find_suspects(folder: Path, window: Sequence[int], served: Array, tolerance: float) -> Search:
    """Try misreadings of the layers in `folder`. Needs memory for the model in float32.

    Args:
        window: token ids [T].
        served: their log-probabilities as served, float64 [T − 1].
        tolerance: the remainder in nats that the engine's arithmetic explains.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    planned = list(candidates(Packed(CheckpointReader(folder)).schemes))
    if not planned or not np.isfinite(served).all():
        return Search([], 0, len(planned))
    model = dequantized_model(folder)
    screened = _screen(_Trial(folder, model, window[:SCREENED], served[: SCREENED - 1]), planned)
    trial = _Trial(folder, model, window, served)
    found = [trial.compare(candidate) for candidate in _least_remainder(planned, screened)]
    tolerance = max(tolerance, SHARE_LEFT * rms(trial.observed))
    return Search(_best(found, tolerance), len(screened), len(planned))


class _Trial:
    """A model, a window of T tokens, and the log-probabilities [T − 1] that were served for it."""

    def __init__(self, folder: Path, model: Any, window: Sequence[int], served: Array) -> None:
        self.folder, self.model, self.window = folder, model, window
        self.exact = token_logprobs(model, window)
        self.observed = served - self.exact

    def compare(self, candidate: Candidate) -> Suspect:
        """What misreading these layers changes, compared with what was observed."""
        with misread(self.folder, self.model, candidate):
            change = token_logprobs(self.model, self.window) - self.exact
        lengths = float(np.linalg.norm(change) * np.linalg.norm(self.observed))
        similarity = float(change @ self.observed) / lengths if lengths else 0.0
        remainder = rms(self.observed - change)
        return Suspect(candidate.where, candidate.misreading, similarity, remainder)


def _screen(trial: _Trial, planned: list[Candidate]) -> list[Suspect]:
    """Try candidates in order until the time is over."""
    deadline = time.monotonic() + SEARCH_S
    found: list[Suspect] = []
    with progress("Suspects", len(planned)) as task:
        for candidate in planned:
            if time.monotonic() > deadline:
                break
            task.note(candidate.where)
            found.append(trial.compare(candidate))
            task.advance()
    return found


def _least_remainder(planned: list[Candidate], screened: list[Suspect]) -> list[Candidate]:
    order = sorted(range(len(screened)), key=lambda i: screened[i].remainder)
    return [planned[i] for i in order[:FINALISTS]]


def candidates(schemes: Mapping[str, Scheme]) -> Iterator[Candidate]:
    """What to try for layers of these schemes: wide faults first: one packer or kernel serves many."""
    possible = {layer: misreadings(scheme) for layer, scheme in schemes.items()}
    names = dict.fromkeys(name for found in possible.values() for name in found)
    for scopes in (_wide_scopes(list(schemes)), {layer: [layer] for layer in schemes}):
        for name in names:
            for where, layers in scopes.items():
                able = tuple(layer for layer in layers if name in possible[layer])
                if able:
                    yield Candidate(where, name, able)


def _wide_scopes(layers: list[str]) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for layer in layers:
        kinds.setdefault(f"every {layer.rpartition('.')[2]}", []).append(layer)
    return {"every layer": layers} | kinds


@contextmanager
def misread(folder: Path, model: Any, candidate: Candidate) -> Iterator[None]:
    """Compute with the candidate's misread weights while the block runs.

    `model` is the `dequantized_model` of `folder`; its weights are those of the checkpoint again afterwards.
    """
    packed = Packed(CheckpointReader(folder))

    def load(layer: str, misreading: Misreading) -> None:
        weight = misreading(packed.read(layer)).dequantize()
        model.get_submodule(layer).weight.data.copy_(weight)

    for layer in candidate.layers:
        load(layer, misreadings(packed.schemes[layer])[candidate.misreading])
    try:
        yield
    finally:
        for layer in candidate.layers:
            load(layer, lambda q: q)


def _best(found: list[Suspect], tolerance: float) -> list[Suspect]:
    """Those that explain what was observed, least remainder first, no place twice."""
    ranked = sorted(found, key=lambda suspect: suspect.remainder)
    named = [s for s in ranked if s.similarity >= SIMILAR and s.remainder <= tolerance]
    places = {suspect.where: suspect for suspect in reversed(named)}
    return [suspect for suspect in named if places[suspect.where] is suspect][:SHOWN]
