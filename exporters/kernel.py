"""What a kernel of vLLM takes."""

from __future__ import annotations

from dataclasses import dataclass

from qdeploy.exporters.targets import Target
from qdeploy.schemes import Scheme

ANY = 10**6
"""A compute capability above all."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel class of vLLM and what it takes.

    Attributes:
        capabilities: lowest and highest CUDA compute capability (times ten); None for the CPU.
        symmetric, asymmetric: bits per weight that it takes on each grid.
        groups: group sizes, None standing for one scale per channel; the empty set for any even size.
        multiples: what N and K on one device must be multiples of.
        avx512: whether a CPU must have AVX-512 or must not; None if it does not matter.
    """

    name: str
    capabilities: tuple[int, int] | None
    symmetric: frozenset[int]
    asymmetric: frozenset[int]
    groups: frozenset[int | None] = frozenset()
    multiples: tuple[int, int] = (1, 1)
    avx512: bool | None = None

    def runs_on(self, target: Target) -> bool:
        """Whether the device has this kernel at all."""
        if self.capabilities is None:
            return target.capability is None and self.avx512 in (None, target.avx512)
        if target.capability is None:
            return False
        return self.capabilities[0] <= target.capability <= self.capabilities[1]

    def objection(self, scheme: Scheme, n: int, k: int) -> str | None:
        """Why the kernel cannot take a layer [n, k] of that scheme; None if it can."""
        bits = self.symmetric if scheme.symmetric else self.asymmetric
        if scheme.bits not in bits:
            grid = "symmetric" if scheme.symmetric else "asymmetric"
            return f"it takes no {grid} {scheme.bits}-bit weights"
        if self.groups and scheme.group_size not in self.groups:
            return f"it takes no group size {scheme.group_size or 'channel'}"
        if n % self.multiples[0]:
            return f"N = {n} is not a multiple of {self.multiples[0]}"
        if k % self.multiples[1]:
            return f"K = {k} is not a multiple of {self.multiples[1]}"
        return None
