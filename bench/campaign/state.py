"""`campaign.json`: what a campaign has done so far, and with which inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from qdeploy.bench.records import Record
from qdeploy.errors import OutputError
from qdeploy.files import read_json, write_text
from qdeploy.validation import first

STATE = "campaign.json"


class StepState(Record):
    """One step of one variant.

    Attributes:
        status: "running" is what an interrupted step leaves.
        fingerprint: hash of everything that the step's result depends on.
    """

    status: Literal["running", "done", "failed"]
    fingerprint: str
    seconds: float | None = None
    error: str | None = None


class VariantState(Record):
    """One variant; `checkpoint` and `deploy` are relative to the campaign's folder where they lie in it.

    Steps are "quantize", "export", "load", "load at RATE" for each rate tried besides, "verify" and "eval".
    """

    name: str
    kind: Literal["baseline", "quantized"]
    checkpoint: str
    deploy: str
    steps: dict[str, StepState] = Field(default_factory=dict)


class State(Record):
    """The whole file. `plan_text` is the plan as its author wrote it."""

    record: Literal["qdeploy-campaign"] = "qdeploy-campaign"
    schema_version: Literal[1] = 1
    plan_text: str
    plan: dict[str, Any]
    variants: list[VariantState] = Field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write `campaign.json` into `folder`, atomically."""
        write_text(folder / STATE, self.model_dump_json(indent=2) + "\n")


def load_state(folder: Path) -> State | None:
    """The state of a campaign folder, None if there is none.

    Raises:
        OutputError: the folder holds something else, or a state of another version.
    """
    path = folder / STATE
    if not path.is_file():
        if folder.is_dir() and any(entry.name != ".lock" for entry in folder.iterdir()):
            raise OutputError(f"{folder} is not empty and not a campaign. Choose another folder with -o.")
        return None
    try:
        return State.model_validate(read_json(path))
    except ValueError as error:
        raise OutputError(
            f"{path} was not written by this version of qdeploy ({first(error)}). "
            "Choose another folder with -o."
        ) from error
