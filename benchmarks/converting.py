"""Convert a checkpoint, copy it and hash it, in turn, in a process of its own: seconds of each, and memory.

A virtual machine may give memory that is free back to its host, and taking it again costs more than a copy:
1 GB is written to a file in 0.2 s, or in 1.3 to 2.4. So before each copy and each conversion a file is
written and deleted, and the fastest counts.

    python -m benchmarks.converting WARM SOURCE OUTPUT TARGET JOBS ROUNDS

WARM is a small checkpoint in the same format, which is converted first, so that every library is loaded.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.process import begin_peak, status
from qdeploy.conversion import convert
from qdeploy.files import fsync_folder, sha256_file


@dataclass(frozen=True)
class Conversion:
    """The fastest of each, in seconds, and the resident set, in bytes, above that at the start."""

    copying: float
    hashing: float
    converting: float
    peak: int


def measured(
    warm: Path, source: Path, output: Path, target: str, *, jobs: int = 1, rounds: int = 1
) -> Conversion:
    """Of the process that this starts; the last round's folder stays in `output`."""
    command = [sys.executable, "-m", "benchmarks.converting", warm, source, output, target, jobs, rounds]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Conversion(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    warm, source, output = map(Path, sys.argv[1:4])
    target, jobs, rounds = sys.argv[4], int(sys.argv[5]), int(sys.argv[6])
    warmed = output.with_name(f"{output.name}-warm")
    convert(warm, warmed, target, jobs=jobs)
    shutil.rmtree(warmed)
    copying, hashing, converting, peaks = [], [], [], []
    for _ in range(rounds):
        hashing.append(_hash(source))
        gc.collect()
        shutil.rmtree(output, ignore_errors=True)
        _take_memory(source, output.with_name("memory"))
        copying.append(_copy(source, output.with_name(f"{output.name}-copy")))
        _take_memory(source, output.with_name("memory"))
        baseline, start = begin_peak(), time.perf_counter()
        convert(source, output, target, jobs=jobs)
        converting.append(time.perf_counter() - start)
        peaks.append(status("VmHWM") - baseline)
    print(json.dumps(asdict(Conversion(min(copying), min(hashing), min(converting), max(peaks)))))


def _take_memory(source: Path, file: Path) -> None:
    """Have half as much again as the files take, so that what comes next finds it free."""
    part = bytes(1 << 20)
    size = sum(each.stat().st_size for each in source.iterdir())
    with file.open("wb") as written:
        for _ in range(3 * size // (2 * len(part))):
            written.write(part)
    file.unlink()


def _copy(source: Path, target: Path) -> float:
    """Seconds that copying the files takes, each flushed to disk as those of a conversion are."""
    start = time.perf_counter()
    target.mkdir()
    for file in source.iterdir():
        shutil.copyfile(file, target / file.name)
        with (target / file.name).open("rb") as copied:
            os.fsync(copied.fileno())
    fsync_folder(target)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def _hash(source: Path) -> float:
    """Seconds that the checksums take which come with a folder."""
    start = time.perf_counter()
    for file in source.glob("*.safetensors"):
        sha256_file(file)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
