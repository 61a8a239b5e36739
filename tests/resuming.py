"""A run that is interrupted between two blocks, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qdeploy import stack
from qdeploy.errors import Interrupted
from qdeploy.pipeline import quantize
from qdeploy.recipe import Recipe
from qdeploy.solved import SolvedBlock


def shard_bytes(folder: Path) -> dict[str, bytes]:
    """File name → content of the weight files."""
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


def whole_and_resumed(asked: Recipe, folder: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The weight files of a run, and of one that is interrupted before the second block and then goes on."""
    quantize(asked, folder / "whole")
    solve = stack.quantize_with_data

    def stop(call: Any, *rest: Any, **options: Any) -> SolvedBlock:
        if call.block.name.endswith(".1"):
            raise KeyboardInterrupt
        return solve(call, *rest, **options)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(stack, "quantize_with_data", stop)
        quantize(asked, folder / "resumed")
    quantize(asked, folder / "resumed")
    return shard_bytes(folder / "whole"), shard_bytes(folder / "resumed")
