from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.pipeline import quantize
from qdeploy.recipe import CalibrationConfig
from qdeploy.sensitivity.candidates import Choice
from qdeploy.sensitivity.size import HEADER_ENTRY, Sizes
from qdeploy.sensitivity.written import recipe_of
from tests.qdeploy.sensitivity.problems import W4, W4_ASYM, W8, W8A8, units_of


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "qwen2"])
def test_files_are_at_most_as_large_as_predicted(
    tiny_model: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    folder = tiny_model(family)
    units, schemes = units_of(folder), [W4, W4_ASYM, W8A8, None]
    chosen: dict[str, Choice] = {unit.name: schemes[i % 4] for i, unit in enumerate(units)}
    quantize(recipe_of(str(folder), units, chosen, "rtn", CalibrationConfig()), tmp_path / "out")
    sizes = Sizes(CheckpointReader(folder), units)
    predicted = sizes.rest + sum(sizes.bytes(unit, chosen[unit.name]) for unit in units)
    written = CheckpointReader(tmp_path / "out")
    actual = sum(file.stat().st_size for file in written.files)
    # Beside the headers, whose size is bounded alone, nothing is guessed.
    assert actual <= predicted < actual + 5 * HEADER_ENTRY * len(written.names)


def test_bits_count_codes_scales_and_zero_points(tiny_llama: Path) -> None:
    units = units_of(tiny_llama)
    sizes = Sizes(CheckpointReader(tiny_llama), units)

    def mean(choice: Choice) -> float:
        return sum(sizes.bits(unit, choice) for unit in units) / sizes.weights

    assert mean(W4) == 4 + 16 / 32
    assert mean(W4_ASYM) == 4 + 16 / 32 + 4 / 32
    assert mean(W8) == 8 + 16 / 32
    assert mean(None) == 16
    assert mean(W8A8) == pytest.approx(8 + 16 / 64, abs=0.1)  # a scale for each row, of 64 or 128 columns
