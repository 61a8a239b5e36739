"""How close a whole `quantize` run comes to the arithmetic that it cannot avoid.

    python -m benchmarks.walk MODEL [SAMPLES ...]

The floor of a run is (forward FLOPs of the blocks for all calibration tokens + 2·K² per token for each
distinct linear input) ÷ the rate at which this machine multiplies float32 matrices, measured in the same run.
Each run is a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from qdeploy.files import read_json
from qdeploy.modeling.checkpoint import CheckpointReader

SEQUENCE_LENGTH = 512
GROUP_SIZE = 64


def gemm_rate(size: int = 2048, repeats: int = 5) -> float:
    """FLOP/s of float32 matrix products on all cores: the best of `repeats`."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def floor_flops(model: Path, tokens: int) -> float:
    """FLOPs of one forward through the blocks' linear layers and of their Hessians."""
    reader = CheckpointReader(model)
    linears = [
        reader.shape(name) for name in reader.names if ".layers." in name and len(reader.shape(name)) == 2
    ]
    forward = sum(2 * n * k for n, k in linears)
    layers = reader.config["num_hidden_layers"]
    hidden, wide = reader.config["hidden_size"], reader.config["intermediate_size"]
    heads = reader.config["num_attention_heads"] * reader.config.get(
        "head_dim", hidden // reader.config["num_attention_heads"]
    )
    # q/k/v share an input, so do gate and up; o and down have their own.
    hessians = layers * 2 * (2 * hidden**2 + heads**2 + wide**2)
    return float(tokens * (forward + hessians))


def run(model: Path, samples: int) -> dict[str, float]:
    """Quantize in a fresh process; seconds and peak memory from its own manifest."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [
            sys.executable,
            "-m",
            "qdeploy",
            "quantize",
            str(model),
            "--scheme",
            "W4A16",
            "--method",
            "gptq",
        ]
        command += ["--group-size", str(GROUP_SIZE), "--samples", str(samples)]
        command += ["--sequence-length", str(SEQUENCE_LENGTH), "-o", str(out)]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wall = time.perf_counter() - start
        totals = read_json(out / "qdeploy.json")["totals"]
    return {"wall": wall, "walk": totals["seconds"], "peak": totals["peak_rss_bytes"]}


def main() -> None:
    """Print floor, wall time, their ratio and peak memory for each number of samples."""
    model = Path(sys.argv[1])
    counts = [int(argument) for argument in sys.argv[2:]] or [32]
    print(f"{model.name}: W4A16 group {GROUP_SIZE}, GPTQ, {torch.get_num_threads()} threads")
    print(f"{'tokens':>10} {'floor':>9} {'walk':>9} {'process':>9} {'walk/floor':>11} {'peak':>9}")
    for samples in counts:
        before = gemm_rate()
        figures = run(model, samples)
        rate = max(before, gemm_rate())
        floor = floor_flops(model, samples * SEQUENCE_LENGTH) / rate
        print(
            f"{samples:>4} × {SEQUENCE_LENGTH} {floor:>7.1f} s {figures['walk']:>7.1f} s "
            f"{figures['wall']:>7.1f} s {figures['walk'] / floor:>10.2f}× {figures['peak'] / 2**30:>5.2f} GiB"
        )


if __name__ == "__main__":
    main()
