"""Doing a step once: skipped while its inputs are what they were, redone from nothing when they are not."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdeploy import __version__
from qdeploy.bench.campaign.state import State, StepState, VariantState
from qdeploy.errors import Interrupted, QDeployError
from qdeploy.progress import console


class StepError(QDeployError):
    """A step failed; the exit code is that of the cause."""

    def __init__(self, variant: str, step: str, cause: QDeployError, log: Path | None) -> None:
        where = f"\n  Log: {log}" if log and log.is_file() and str(log) not in str(cause) else ""
        super().__init__(f"Variant {variant}, step {step}: {cause}{where}")
        self.exit_code = cause.exit_code


@dataclass(frozen=True)
class Measurement:
    """A step done while the variant is served: what it depends on, what it leaves, how it is done.

    `rate` is that of a load which is tried besides the plan's own.
    """

    step: str
    fingerprint: str
    result: Path
    action: Callable[[Any], object]
    rate: float | None = None


class Steps:
    """Runs the steps of a campaign and keeps `campaign.json` true at every moment."""

    def __init__(self, folder: Path, state: State) -> None:
        self.folder, self.state = folder, state

    def fresh(self, variant: VariantState, step: str, fingerprint: str, result: Path) -> bool:
        """Whether `result` is there and was made from these inputs."""
        last = variant.steps.get(step)
        done = last is not None and last.status == "done" and last.fingerprint == fingerprint
        return done and result.exists()

    def run(
        self,
        variant: VariantState,
        step: str,
        fingerprint: str,
        result: Path,
        action: Callable[[], object],
        log: Path | None = None,
    ) -> None:
        """Do `action`, which makes the folder of the file `result`, unless it is fresh.

        What an earlier run left in that folder is removed first, for it was made from other inputs. So is
        what it left half made beside it, unless it was this very step that was stopped.

        Raises:
            StepError: the action failed; names variant, step and log.
            Interrupted: Ctrl-C; the next run of the campaign goes on with this step.
        """
        if self.fresh(variant, step, fingerprint, result):
            console.print(f"{variant.name}: {step} is there already", highlight=False)
            return
        console.print(f"{variant.name}: {step}", highlight=False)
        last = variant.steps.get(step)
        shutil.rmtree(result.parent, ignore_errors=True)
        if last is None or last.fingerprint != fingerprint:
            shutil.rmtree(result.parent.with_name(f"{result.parent.name}.partial"), ignore_errors=True)
        self._keep(variant, step, StepState(status="running", fingerprint=fingerprint))
        start = time.monotonic()
        try:
            action()
        except QDeployError as error:
            self._keep(variant, step, StepState(status="failed", fingerprint=fingerprint, error=str(error)))
            raise StepError(variant.name, step, error, log) from error
        except KeyboardInterrupt:
            raise interrupted(variant.name, step) from None
        seconds = round(time.monotonic() - start, 1)
        self._keep(variant, step, StepState(status="done", fingerprint=fingerprint, seconds=seconds))

    def reject(self, variant: VariantState, step: str, reason: str) -> None:
        """Have a step that is done be done again."""
        rejected = variant.steps[step].model_copy(update={"status": "failed", "error": reason})
        self._keep(variant, step, rejected)

    def _keep(self, variant: VariantState, step: str, record: StepState) -> None:
        variant.steps[step] = record
        self.state.save(self.folder)


def interrupted(variant: str, step: str) -> Interrupted:
    """The error for Ctrl-C in a step."""
    return Interrupted(f"Interrupted in variant {variant}, step {step}. The same command goes on from there.")


def fingerprint(*inputs: Any) -> str:
    """SHA-256 of the inputs as JSON, and of qdeploy's version, whose change may change a result."""
    text = json.dumps([__version__, *inputs], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def stamp(path: Path) -> list[Any]:
    """Names, sizes and times of a file or of the files in a folder; enough to see that it was replaced."""
    files = [path] if path.is_file() else sorted(f for f in path.glob("*") if f.is_file())
    return [(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
