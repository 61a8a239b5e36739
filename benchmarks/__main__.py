"""python -m benchmarks MODEL: print the tables of speed, peers, linear cost and quality."""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.accuracy import accuracy
from benchmarks.calibration import calibration
from benchmarks.client import client
from benchmarks.convert import convert
from benchmarks.four_bits import four_bits
from benchmarks.linear import linear
from benchmarks.methods import methods
from benchmarks.quality import quality
from benchmarks.speed import peers, speed
from qdeploy.provenance import cpu_model

TABLES = ("speed", "peers", "linear", "quality")
MORE = ("methods", "calibration", "four-bits", "convert", "client", "eval")
"""Tables that are printed when they are asked for."""


def main() -> None:
    """Print the tables that were asked for; everything that is written on the way is removed."""
    options = _options()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a table shows as soon as it is whole, in a file too
    model: Path = options.model.resolve()
    print(f"# {model.name} on {cpu_model()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory(prefix="qdeploy-benchmark-") as folder:
        work = Path(folder)
        ours = speed(model, work) if "speed" in options.tables else None
        done = peers(model, work, ours) if "peers" in options.tables else {}
        if "linear" in options.tables:
            linear(work)
        if "quality" in options.tables:
            quality(model, work, options.data, done)
        if "methods" in options.tables:
            methods(model, work, options.data)
        if "calibration" in options.tables:
            calibration(model, work, options.data)
        if "four-bits" in options.tables:
            four_bits(model, work, options.data)
        if "convert" in options.tables:
            convert(work)
        if "client" in options.tables:
            client(work)
        if "eval" in options.tables:
            accuracy(model, work, options.data)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("model", type=Path, help="folder of the 16-bit model")
    parser.add_argument(
        "--tables",
        nargs="+",
        choices=[*TABLES, *MORE],
        default=TABLES,
        metavar="TABLE",
        help=f"which to print: {', '.join(TABLES)} (default: all of these), {', '.join(MORE)}",
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="folder with original files of data sets: WikiText-2's and PTB's texts, tasks (docs/tasks.md)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
