"""Where qdeploy keeps what belongs to no run: engines, their logs, the catalogue."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """`$QDEPLOY_HOME`, else `$XDG_DATA_HOME/qdeploy`, by default `~/.local/share/qdeploy`."""
    if own := os.environ.get("QDEPLOY_HOME"):
        return Path(own).expanduser()
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser() / "qdeploy"
