"""Suites of tasks as data: `NAME.yaml` lists tasks, `tasks.yaml` what is known of each."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from qdeploy.errors import UnknownNameError

FOLDER = Path(__file__).parent
KNOWN = "tasks"


class Entry(BaseModel):
    """A task of a suite.

    Attributes:
        shots: examples before each question; None: as many as the user asks for.
        metric: what the suite counts.
    """

    model_config = ConfigDict(extra="forbid")
    task: str
    metric: str
    shots: int | None = None


class Known(BaseModel):
    """What is known of a task.

    Attributes:
        rows: documents in the split that is scored.
        cluster: fields by which documents belong together.
    """

    model_config = ConfigDict(extra="forbid")
    rows: int | None = None
    cluster: tuple[str, ...] = ()


def suite(name: str) -> list[Entry]:
    """The tasks of a suite.

    Raises:
        UnknownNameError: there is none of this name.
    """
    names = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != KNOWN)
    if name not in names:
        raise UnknownNameError("suite", name, names)
    return [Entry.model_validate(entry) for entry in _read(name)]


@cache
def _known() -> dict[str, Known]:
    return {task: Known.model_validate(facts) for task, facts in _read(KNOWN).items()}


def known(task: str) -> Known:
    """What is known of a task; nothing of most."""
    return _known().get(task, Known())


def _read(name: str) -> Any:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
