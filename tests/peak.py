"""Quantize in a process of its own and print the memory that it took above interpreter and libraries.

    python -m tests.peak WARM MODEL OUT RECIPE BUDGET [LIMIT]

WARM is a tiny model that is quantized first, so that every library is loaded and every thread started. LIMIT
is the number of bytes of anonymous memory that the process may take from then on, beside what it has.
"""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.process import begin_peak, status
from qdeploy.memory import Budget
from qdeploy.pipeline import quantize
from qdeploy.recipe import Recipe


def measured(warm: Path, model: Path, recipe: Path, output: Path, budget: int, *limit: int) -> dict[str, int]:
    """`baseline` and `peak` of the resident set, in bytes, of the process that this starts."""
    arguments = [warm, model, output, recipe, budget, *limit]
    command = [sys.executable, "-m", "tests.peak", *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return dict(json.loads(found.stdout.splitlines()[-1]))


def main() -> None:
    warm, model, output, recipe = map(Path, sys.argv[1:5])
    budget, *limit = map(int, sys.argv[5:])
    torch.set_num_threads(1)
    quantize(Recipe.from_yaml(recipe, str(warm)), output.with_name("warm"), limits=Budget(budget))
    gc.collect()
    if limit:
        most = status("VmData") + limit[0]
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    baseline = begin_peak()
    quantize(Recipe.from_yaml(recipe, str(model)), output, limits=Budget(budget))
    print(json.dumps({"baseline": baseline, "peak": status("VmHWM")}))


if __name__ == "__main__":
    main()
