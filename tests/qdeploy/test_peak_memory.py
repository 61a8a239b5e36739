"""How much memory a run takes, measured by the kernel in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdeploy.memory import Budget
from qdeploy.recipe import Recipe
from tests.conftest import save_tiny
from tests.peak import measured
from tests.qdeploy.test_estimate import estimated

HIDDEN, WIDE = 256, 1024
CALIBRATION = {"samples": 16, "sequence_length": 256}


def llama(folder: Path, layers: int) -> Path:
    return save_tiny(
        folder, "llama", hidden_size=HIDDEN, intermediate_size=WIDE, num_hidden_layers=layers, head_dim=64
    )


def test_four_times_the_layers_take_no_more_memory(tiny_llama: Path, tmp_path: Path) -> None:
    few, many = llama(tmp_path / "few", 2), llama(tmp_path / "many", 8)
    asked = Recipe.from_flags(str(few), group_size="64", calibration=CALIBRATION)
    (tmp_path / "recipe.yaml").write_text(asked.to_yaml())
    # Micro-batches wait inside a block while its layers are solved: both are to fit.
    limits = Budget(3 * estimated(asked).solving)
    needed = estimated(asked, limits)
    assert not needed.is_ample  # where memory is ample, freed tensors are kept
    peaks = []
    for model in (few, many):
        output = tmp_path / f"{model.name}-out" / "out"
        found = measured(tiny_llama, model, tmp_path / "recipe.yaml", output, limits.memory)
        peaks.append(found["peak"] - found["baseline"])
    assert peaks[1] < 1.05 * peaks[0]
    assert max(peaks) <= needed.bound
    assert peaks == pytest.approx([needed.in_use] * 2, rel=0.2)
    # A budget that nothing is made of would prove nothing, nor would layers too small to show if they stayed.
    assert min(peaks) > 0.5 * limits.memory
    assert 6 * needed.block > 2 * 0.05 * peaks[0]
