"""From one packed format to another: time beside that of copying, memory beside the size of a file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from benchmarks.converting import measured
from benchmarks.synthetic import save_packed
from benchmarks.table import table
from qdeploy.conversion import convert as run
from qdeploy.schemes import Scheme

SCHEME = Scheme("W4A16", 4, 128)
SHARDS, HIDDEN = 16, 2816
"""Files of 63 MB; together more than interpreter and libraries take."""

OURS = "compressed-tensors"
TARGETS = ("gptq", "awq", "modelopt")
JOBS = (1, 2)
ROUNDS = 6


def convert(work: Path) -> None:
    """Print the table: each format, there and back."""
    warm = save_packed(work / "warm" / OURS, 1, 256, SCHEME)
    source = save_packed(work / "packed" / OURS, SHARDS, HIDDEN, SCHEME)
    size = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    shard = max(file.stat().st_size for file in source.glob("*.safetensors"))
    print(f"\n## Converting {size / 1e9:.2f} GB in {SHARDS} files, 4 bits in groups of 128\n")
    rows = []
    for target in TARGETS:
        run(warm, warm.with_name(target), target)
        rows += [_row(warm, source, target, jobs, shard) for jobs in JOBS]
        there = source.with_name(target)
        rows += [_row(warm.with_name(target), there, OURS, jobs, shard) for jobs in JOBS]
        shutil.rmtree(there)
    print(
        table(
            ["from → to", "--jobs", "copying", "SHA-256", "converting", "÷ copying", "÷ both", "peak ÷ file"],
            rows,
        )
    )
    load = os.getloadavg()[0]
    print(
        f"The fastest of {ROUNDS}, in turn. Copies and conversions flush every file; a conversion hashes it. "
        f"One minute's load at the end: {load:.1f}."
    )


def _row(warm: Path, source: Path, target: str, jobs: int, shard: int) -> list[str]:
    name = target if target != OURS else "back"
    output = source.with_name(name)
    found = measured(warm, source, output, target, jobs=jobs, rounds=ROUNDS)
    if name == "back":
        shutil.rmtree(output)
    return [
        f"{source.name} → {target}",
        str(jobs),
        f"{found.copying:.2f} s",
        f"{found.hashing:.2f} s",
        f"{found.converting:.2f} s",
        f"{found.converting / found.copying:.2f}×",
        f"{found.converting / (found.copying + found.hashing):.2f}×",
        f"{found.peak / shard:.2f}",
    ]
