"""How much memory a run takes, measured by the kernel in a process of its own."""

from __future__ import annotations

from pathlib import Path

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
    limits = Budget(estimated(asked).least_budget)
    peaks = []
    for model in (few, many):
        output = tmp_path / f"{model.name}-out" / "out"
        found = measured(tiny_llama, model, tmp_path / "recipe.yaml", output, limits.memory)
        peaks.append(found["peak"] - found["baseline"])
    assert abs(peaks[1] - peaks[0]) < 0.05 * peaks[0]
    needed = estimated(asked, limits)
    assert max(peaks) <= needed.embeddings + 2 * needed.block + needed.hessians + limits.memory
    # A budget that nothing is made of would prove nothing.
    assert min(peaks) > 0.5 * limits.memory
    assert 6 * needed.block > 0.2 * peaks[0]  # layers that stayed would show
