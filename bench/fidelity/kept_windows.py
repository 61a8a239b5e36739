"""Windows on disk as they are scored, so that an evaluation goes on where it was stopped."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qdeploy.bench.fidelity.token_table import TokenTable, read_tokens, write_tokens
from qdeploy.bench.fidelity.windows import Windows
from qdeploy.files import read_json, write_json

KEPT = "windows"
"""In the folder of the run for as long as it is not whole."""
ASKED = "asked.json"


class KeptWindows:
    """The windows of one text that one model has scored, a file each.

    Args:
        folder: made where it is not there; what it holds of another model or text is removed.
        asked: all that the scores depend on, as JSON.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        self.folder = folder
        path = folder / ASKED
        if not path.is_file() or read_json(path) != asked:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_json(path, dict(asked))

    def tables(self) -> dict[int, TokenTable]:
        """Window → its rows."""
        return {int(path.stem): read_tokens(self.folder, path.name) for path in self.folder.glob("*.parquet")}

    def add(self, window: int, table: TokenTable) -> None:
        """Keep a window; it is there whole or not at all."""
        temporary = self.folder / f"{window}.tmp"
        write_tokens(temporary, table)
        temporary.replace(self.folder / f"{window}.parquet")


def asked_of(
    model: Mapping[str, Any], windows: Windows, top_k: int, baseline: TokenTable | None
) -> dict[str, Any]:
    """What the scores of these windows depend on.

    Args:
        model: what is asked, in whatever words tell two models apart.
        baseline: whose likeliest tokens are scored as well.
    """
    cut = hashlib.sha256()
    for index, tokens in enumerate(windows.tokens):
        cut.update(np.array([windows.start(index), len(tokens), *tokens], np.int64).tobytes())
    chosen = None if baseline is None else hashlib.sha256(baseline.top_ids.tobytes()).hexdigest()
    return {"model": dict(model), "windows": cut.hexdigest(), "top_k": top_k, "chosen": chosen}
