"""What is compared: one served model and its runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qdeploy.bench.records import RunRecord, load_record
from qdeploy.errors import ComparisonError


@dataclass(frozen=True)
class Run:
    """A run folder and its record."""

    folder: Path
    record: RunRecord


@dataclass(frozen=True)
class Side:
    """The baseline or a candidate: at most one evaluation, any number of load runs."""

    folder: Path
    evaluation: Run | None
    loads: tuple[Run, ...]

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.resolve().name


def read_side(folder: Path) -> Side:
    """Read a run folder, or a folder with run folders directly in it.

    Raises:
        ComparisonError: there is no run of `qdeploy eval` or `qdeploy bench`, or more than one evaluation.
    """
    runs = [Run(path, load_record(path)) for path in _run_folders(folder)]
    evaluations = [run for run in runs if run.record.tasks or run.record.fidelity]
    loads = tuple(run for run in runs if run.record.load)
    if len(evaluations) > 1:
        names = ", ".join(str(run.folder) for run in evaluations)
        raise ComparisonError(f"{folder} holds {len(evaluations)} evaluations ({names}). Give one of them.")
    if not evaluations and not loads:
        raise ComparisonError(f"{folder} holds no finished run of `qdeploy eval` or `qdeploy bench`.")
    return Side(folder, evaluations[0] if evaluations else None, loads)


def _run_folders(folder: Path) -> list[Path]:
    inside = [] if (folder / "run.json").is_file() else sorted(p.parent for p in folder.glob("*/run.json"))
    # A folder that is no run gives the message that `load_record` has for it.
    return inside or [folder]
