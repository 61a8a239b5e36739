"""A fresh process, with the time and memory that it took."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.05
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True)
class Usage:
    """Wall time of a whole process, the processors' time, and the most memory that was resident in it."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


class ProcessError(Exception):
    """A process that failed; the message holds the end of its log."""


def status(field: str) -> int:
    """Bytes of a line of /proc/self/status, such as VmHWM, the peak of the resident set."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def begin_peak() -> int:
    """Count VmHWM from here on; returns the resident set, in bytes."""
    CLEAR.write_text("5")
    return status("VmRSS")


def run(
    command: Sequence[str], log: Path, folder: Path, environment: Mapping[str, str] | None = None
) -> Usage:
    """Run a command to its end.

    Args:
        command: program and arguments.
        log: gets its output.
        folder: where it runs: some tools leave files there.
        environment: variables besides our own.

    Raises:
        ProcessError: its exit code is not 0.
    """
    start, cpu, peak = time.perf_counter(), _children_cpu_seconds(), 0
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
        )
    try:
        while process.poll() is None:
            peak = max(peak, _peak_bytes(process.pid))
            time.sleep(POLL_S)
    finally:
        process.kill()
        process.wait()
    seconds = time.perf_counter() - start
    if process.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise ProcessError(f"`{' '.join(command)}` failed with exit code {process.returncode}:\n{tail}")
    return Usage(seconds, _children_cpu_seconds() - cpu, peak)


def _children_cpu_seconds() -> float:
    """Of all processes that have ended and been waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _peak_bytes(pid: int) -> int:
    """The kernel's high-water mark; what getrusage says includes the parent at the time of the fork."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it ended meanwhile
        return 0
    marks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(marks[0]) if marks else 0
