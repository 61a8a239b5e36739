"""The devices that an export can be for."""

from __future__ import annotations

from dataclasses import dataclass

from qdeploy.errors import UnknownNameError, UsageError
from qdeploy.provenance import cpu_flags


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of device.

    Attributes:
        capability: CUDA compute capability times ten, e.g. 90 for sm90; None for a CPU.
        memory: bytes that CUDA gives out, which is less than the name of the card says; None for a CPU.
        avx512: whether a CPU has AVX-512, for which vLLM has kernels that other CPUs lack.
    """

    name: str
    capability: int | None
    memory: int | None = None
    avx512: bool = False

    def __str__(self) -> str:
        return self.name if self.capability is None else f"{self.name} (sm{self.capability})"


GIB = 1 << 30


def _gib(size: float) -> int:
    return int(size * GIB)


TARGETS = {
    target.name: target
    for target in (
        Target("t4", 75, _gib(14.5)),
        Target("a100", 80, _gib(79.1)),
        Target("a10", 86, _gib(22.0)),
        Target("l4", 89, _gib(22.0)),
        Target("l40s", 89, _gib(44.3)),
        Target("rtx4090", 89, _gib(23.5)),
        Target("h100", 90, _gib(79.1)),
        Target("h200", 90, _gib(139.8)),
        Target("b200", 100, _gib(178.3)),
        Target("cpu-avx512", None, avx512=True),
        Target("cpu-avx2", None),
    )
}
"""Compute capabilities as NVIDIA lists them: https://developer.nvidia.com/cuda-gpus.

Memory as PyTorch tells it when it runs out ("GPU 0 has a total capacity of 79.18 GiB"): the least that users
report, rounded down. a100 and h100 are those of 80 GB.
"""


def find_target(name: str, tensor_parallel: int = 1) -> Target:
    """The target of that name; "cpu" is this machine's CPU, "auto" its first GPU or else its CPU.

    Args:
        name: of a device.
        tensor_parallel: how many of them a model is split over.

    Raises:
        UnknownNameError: no such target.
        UsageError: fewer than one.
    """
    if tensor_parallel < 1:
        raise UsageError(f"--tensor-parallel is {tensor_parallel}; it must be at least 1.")
    name = name.lower()
    if name == "auto":
        return _gpu_here() or _cpu_here()
    if name == "cpu":
        return _cpu_here()
    if name not in TARGETS:
        raise UnknownNameError("GPU", name, [*TARGETS, "cpu", "auto"])
    return TARGETS[name]


def _gpu_here() -> Target | None:
    import torch

    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    return Target(found.name, 10 * found.major + found.minor, found.total_memory)


def _cpu_here() -> Target:
    return TARGETS["cpu-avx512" if "avx512f" in cpu_flags() else "cpu-avx2"]
