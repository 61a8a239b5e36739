"""The option `--mlflow` of the commands that measure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qdeploy.bench.tracking import Tracker

MLFLOW = "Log to MLflow at this URI as well (http:, https: or file:); needs qdeploy[mlflow]."


def open_tracker(uri: str | None) -> Tracker | None:
    """The store at `uri`, found to answer before anything is measured; None without one."""
    if uri is None:
        return None
    from qdeploy.bench.tracking import Tracker

    return Tracker(uri)
