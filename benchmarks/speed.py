"""Wall time and memory of GPTQ runs against the floor, and of the peers in the same run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.floor import Rate, floor_flops, measure_rate, products
from benchmarks.peer import INSTALL_COMMAND, PEERS, Peer
from benchmarks.runs import GROUP_SIZE, PLAIN, SAMPLES, Calibration, Run, Settings, run_peer, run_qdeploy
from benchmarks.table import gibibytes, table

COUNTS = (SAMPLES, 4 * SAMPLES)
PLAINLY = "qdeploy, plain GPTQ"
PARTS = ("load", "reference", "forward", "hessian", "solve", "pack", "write")


@dataclass(frozen=True)
class Measured:
    """A run between two measurements of the machine's rate.

    Attributes:
        rate: the better of the two.
        floor: seconds that the arithmetic takes at this rate.
        busy: share of the processors, in percent, that others took before the run.
    """

    run: Run
    rate: Rate
    floor: float
    busy: float

    @property
    def ratio(self) -> float:
        """Quantizing time over the floor."""
        return self.run.seconds / self.floor


def measure(
    calibration: Calibration,
    folder: Path,
    peer: Peer | None = None,
    settings: Settings | None = None,
) -> Measured:
    """Run GPTQ by qdeploy, at its defaults but for `settings`, or by a peer at its own."""
    shapes = products(calibration.model)
    busy, before = psutil.cpu_percent(1.0), measure_rate(shapes)
    if peer is None:
        run = run_qdeploy(calibration, folder, method="gptq", settings=settings)
    else:
        run = run_peer(peer, {}, calibration, folder)
    rate = max(before, measure_rate(shapes), key=lambda rate: rate.flops)
    tokens = calibration.tokens
    return Measured(run, rate, floor_flops(calibration.model, tokens) / rate.flops, busy)


def speed(model: Path, work: Path) -> Measured:
    """Print the table of our runs; returns the one on as many samples as the peers get."""
    print(f"\n## Speed of W4A16 group {GROUP_SIZE} GPTQ\n")
    found = []
    for samples in COUNTS:
        name = f"qdeploy-{samples}"
        found.append(measure(Calibration(model, samples, work / f"calibration-{samples}"), work / name))
    header = ["tokens", "floor", "quantizing", "ratio", *PARTS, "other", "process", "peak"]
    print(table(header, [_our_row(c, m) for c, m in zip(COUNTS, found, strict=True)]))
    _explain(found)
    return found[0]


def peers(model: Path, work: Path, ours: Measured | None) -> dict[str, Run]:
    """Print the table of the peers beside ours, on the same tokens; returns name → run, of all but ours."""
    print("\n## The same run by others, at their defaults\n")
    calibration = Calibration(model, SAMPLES, work / f"calibration-{SAMPLES}")
    ours = ours or measure(calibration, work / f"qdeploy-{SAMPLES}")
    found = {PLAINLY: measure(calibration, work / "qdeploy-plain", settings=PLAIN)}
    found |= {p.name: measure(calibration, work / p.package, p) for p in PEERS if p.installed}
    plain = found[PLAINLY]
    rows = [_row(name, measured, ours, plain) for name, measured in {"qdeploy": ours, **found}.items()]
    print(table(["", "quantizing", "÷ floor", "÷ ours", "÷ plain", "process", "÷ ours", "peak"], rows))
    print(f"Plain: with {', '.join(f'{key} {value:g}' for key, value in PLAIN['gptq'].items())}.")
    skipped()
    _explain([ours, *found.values()])
    return {name: measured.run for name, measured in found.items()}


def skipped() -> None:
    """Name the peers that are not installed."""
    for peer in PEERS:
        if not peer.installed:
            print(f"{peer.name}: skipped, it is not installed. To install it: {INSTALL_COMMAND}")


def _our_row(samples: int, measured: Measured) -> list[str]:
    run = measured.run
    parts = [run.split.get(part, 0.0) for part in PARTS]
    times = [f"{seconds:.1f} s" for seconds in [*parts, run.seconds - sum(parts), run.process.seconds]]
    return [
        f"{samples} × 512",
        f"{measured.floor:.1f} s",
        f"{run.seconds:.1f} s",
        f"{measured.ratio:.2f}×",
        *times,
        gibibytes(run.process.peak_bytes),
    ]


def _row(name: str, measured: Measured, ours: Measured, plain: Measured) -> list[str]:
    run = measured.run
    return [
        name,
        f"{run.seconds:.1f} s",
        f"{measured.ratio:.2f}×",
        f"{run.seconds / ours.run.seconds:.2f}×",
        f"{run.seconds / plain.run.seconds:.2f}×",
        f"{run.process.seconds:.1f} s",
        f"{run.process.seconds / ours.run.process.seconds:.2f}×",
        gibibytes(run.process.peak_bytes),
    ]


def _explain(found: Sequence[Measured]) -> None:
    """Say what the floor was computed with, and how quiet the machine was."""
    for measured in found:
        m, k, n = measured.rate.shape
        print(
            f"{measured.rate.flops / 1e9:.0f} GFLOP/s in float32, the best of all shapes, {m}×{k}×{n}, "
            f"before or after the run; processors were {measured.busy:.0f} % busy before it."
        )
