"""Power and memory of this machine's NVIDIA GPUs, by NVML where its Python binding is installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qdeploy.bench.records import GpuUse


@dataclass(frozen=True, slots=True)
class GpuSample:
    """All GPUs at one time: the time in ns, watts, joules since the driver was loaded, bytes in use."""

    time_ns: int
    power_w: tuple[float, ...]
    energy_j: tuple[float, ...]
    memory_bytes: tuple[int, ...]


class Gpus:
    """The GPUs of this machine; none without the `nvidia-ml-py` package or without a driver."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: list[Any] = []
        try:
            import pynvml
        except ImportError:
            return
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return
        self._nvml = pynvml
        self._handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]

    def close(self) -> None:
        """Let go of the driver."""
        if self._nvml:
            self._nvml.nvmlShutdown()

    def sample(self, time_ns: int) -> GpuSample | None:
        """Power, energy and memory now; None without GPUs or where a GPU does not tell."""
        if not self._handles:
            return None
        nvml = self._nvml
        try:
            return GpuSample(
                time_ns,
                tuple(nvml.nvmlDeviceGetPowerUsage(h) / 1e3 for h in self._handles),
                tuple(nvml.nvmlDeviceGetTotalEnergyConsumption(h) / 1e3 for h in self._handles),
                tuple(nvml.nvmlDeviceGetMemoryInfo(h).used for h in self._handles),
            )
        except nvml.NVMLError:
            return None

    def use(self, samples: Sequence[GpuSample]) -> list[GpuUse]:
        """What each GPU drew and held over `samples`, of which there are two or more, else nothing."""
        if len(samples) < 2:
            return []
        seconds = (samples[-1].time_ns - samples[0].time_ns) / 1e9
        energies = [b - a for a, b in zip(samples[0].energy_j, samples[-1].energy_j, strict=True)]
        return [
            GpuUse(
                name=self._name(i),
                mean_power_w=energy / seconds,
                energy_j=energy,
                peak_memory_bytes=max(sample.memory_bytes[i] for sample in samples),
            )
            for i, energy in enumerate(energies)
        ]

    def _name(self, index: int) -> str:
        return str(self._nvml.nvmlDeviceGetName(self._handles[index]))
