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
ATTEMPTS = 2
"""Runs of each model, of which the lesser peak counts: where tensors come to lie in the heap moves it."""
JITTER = 8 << 20
"""Bytes by which the peak of one and the same run may differ; so few that layers that stayed would show."""


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
    peaks = []
    for model in (few, many):
        found = []
        for attempt in range(ATTEMPTS):
            output = tmp_path / f"{model.name}-{attempt}" / "out"
            found.append(measured(tiny_llama, model, tmp_path / "recipe.yaml", output, limits.memory))
        peaks.append(min(run["peak"] - run["baseline"] for run in found))
    assert peaks[1] - peaks[0] < JITTER
    needed = estimated(asked, limits)
    assert max(peaks) <= needed.embeddings + 2 * needed.block + needed.hessians + limits.memory
    # A budget that nothing is made of would prove nothing.
    assert min(peaks) > 0.5 * limits.memory
    assert 6 * needed.block > 2 * JITTER  # layers that stayed would show
