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
        avx512: whether a CPU has AVX-512, for which vLLM has kernels that other CPUs lack.
    """

    name: str
    capability: int | None
    avx512: bool = False

    def __str__(self) -> str:
        return self.name if self.capability is None else f"{self.name} (sm{self.capability})"


TARGETS = {
    target.name: target
    for target in (
        Target("t4", 75),
        Target("a100", 80),
        Target("a10", 86),
        Target("l4", 89),
        Target("l40s", 89),
        Target("rtx4090", 89),
        Target("h100", 90),
        Target("h200", 90),
        Target("b200", 100),
        Target("cpu-avx512", None, avx512=True),
        Target("cpu-avx2", None),
    )
}
"""Compute capabilities as NVIDIA lists them: https://developer.nvidia.com/cuda-gpus."""


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
    major, minor = torch.cuda.get_device_capability(0)
    return Target(torch.cuda.get_device_name(0), 10 * major + minor)


def _cpu_here() -> Target:
    return TARGETS["cpu-avx512" if "avx512f" in cpu_flags() else "cpu-avx2"]
