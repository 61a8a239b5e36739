"""How much memory there is, and how much of it the activations of a run may take.

A budget decides what is kept and what is computed or read again, never what comes out: it is no part of the
recipe, and the codes are the same under any.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from qdeploy.errors import UsageError

DEFAULT_SHARE = 0.5
"""Share of the memory that is free at the start that activations may take unless the user says."""

STATES_SHARE = 0.25
"""Share of a budget in RAM for the hidden states between blocks, where those inside a block need RAM too."""

UNITS = {"": 1, "b": 1} | {
    letter + suffix: base**power
    for power, letter in enumerate("kmgt", 1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}

CGROUP = Path("/sys/fs/cgroup")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, NEVER = -1, -3, -1
LARGEST = 1 << 25
"""The most bytes of a tensor that glibc can be told to take from its heap."""

EXACT = 1 << 17
"""Bytes from which a tensor has pages of its own where memory is short; glibc's own default."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes that activations may take.

    Attributes:
        memory: in RAM: hidden states between blocks, and without a GPU what is alive inside a block.
        device: on the GPU, inside a block; None where there is no GPU.
    """

    memory: int
    device: int | None = None

    @property
    def states(self) -> int:
        """Bytes of RAM for hidden states between blocks; more of them are kept in a file."""
        return self.memory if self.device is not None else int(STATES_SHARE * self.memory)

    def inside(self, states: int) -> int:
        """Bytes for what is alive inside a block, beside `states` bytes of hidden states in RAM."""
        return self.device if self.device is not None else self.memory - states


def budget(activation_memory: str | None = None, device_memory: str | None = None) -> Budget:
    """What the user asked for, e.g. "2GiB"; where he did not, DEFAULT_SHARE of what is free.

    Raises:
        UsageError: a size cannot be read, or is for a GPU that is not there.
    """
    share = DEFAULT_SHARE / int(
        os.environ.get("LOCAL_WORLD_SIZE", "1")
    )  # torchrun: processes on this machine
    memory = parse_size(activation_memory, "--activation-memory") if activation_memory else None
    device = parse_size(device_memory, "--device-memory") if device_memory else None
    free = free_device()
    if device is not None and free is None:
        raise UsageError(f"--device-memory {device_memory}: torch sees no CUDA device here. Leave it out.")
    if device is None and free is not None:
        device = int(DEFAULT_SHARE * free)
    return Budget(int(share * free_memory()) if memory is None else memory, device)


def parse_size(text: str, option: str) -> int:
    """Bytes in "2GiB" (1024³), "2GB" (1000³), "512 MiB", "1.5gib" or "1073741824".

    Raises:
        UsageError: it is none of these, or nothing.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if found is None or found[2] not in UNITS or (size := int(float(found[1]) * UNITS[found[2]])) == 0:
        raise UsageError(f"{option} {text!r} is not a size. Write it like 2GiB, 512MiB, 2GB or 1073741824.")
    return size


def format_size(size: float) -> str:
    """Bytes for people: "1.95 GiB"."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            break
        size, unit = size / 1024, {"bytes": "KiB", "KiB": "MiB", "MiB": "GiB"}.get(unit, "TiB")
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.2f} {unit}"


def free_memory() -> int:
    """Bytes of RAM that this process could still take: what is available, or a container's limit."""
    available = int(psutil.virtual_memory().available)
    try:
        limit = int((CGROUP / "memory.max").read_text())
        return min(available, limit - int((CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):  # no control group, or its limit is "max"
        return available


def free_device() -> int | None:
    """Bytes that are free on the GPU; None without one."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None


def free_disk(folder: Path) -> int:
    """Bytes that are free where `folder` is, or will be made."""
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    return shutil.disk_usage(existing).free


def manage_heap(*, ample: bool) -> None:
    """Say what becomes of freed tensors, for the rest of the process.

    With ample memory glibc keeps them for the next ones: clearing new pages for each tensor took a third of a
    forward's time. Its heap then has holes, up to half of what is alive on small models. Otherwise pages are
    handed back at once, and the process takes what its tensors take.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST if ample else EXACT)
        mallopt(M_TRIM_THRESHOLD, NEVER if ample else EXACT)
