"""What the walk makes of a layer, and of a block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from qdeploy.methods.base import Solution


@dataclass(frozen=True, slots=True)
class Solved:
    """A solution, the seconds it took, and how many calibration tokens it saw: None without data."""

    solution: Solution
    seconds: float
    tokens: int | None

    def divided_by(self, s: Tensor) -> Solved:
        """With its rows divided by powers of two s [N]."""
        quantized = self.solution.quantized.divided_by(s)
        return replace(self, solution=replace(self.solution, quantized=quantized))

    def with_word(self, word: str | None) -> Solved:
        """With one more thing to tell, beside why something simpler was done."""
        told = "; ".join(filter(None, (self.solution.fallback, word)))
        return replace(self, solution=replace(self.solution, fallback=told or None))


@dataclass(frozen=True, slots=True)
class SolvedBlock:
    """What a block becomes.

    Attributes:
        layers: full name → the quantized layer.
        divided: full name of a norm or linear → what its rows are divided by, float32 [R]; quantized layers
            in `layers` already are.
        plus_one: norms among them that multiply by 1 + w → the layers that read them.
        kv_cache: full name of a scale → that scale; see `qdeploy.kv_cache.cache_scales`.
    """

    layers: dict[str, Solved]
    divided: Mapping[str, Tensor] = field(default_factory=dict)
    plus_one: Mapping[str, list[str]] = field(default_factory=dict)
    kv_cache: Mapping[str, Tensor] = field(default_factory=dict)
