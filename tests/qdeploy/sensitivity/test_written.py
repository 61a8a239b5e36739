from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from qdeploy.assignment import resolve_schemes
from qdeploy.modeling.blocks import find_blocks
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.modeling.skeleton import build_skeleton
from qdeploy.pipeline import shapes
from qdeploy.recipe import CalibrationConfig, Recipe
from qdeploy.schemes import INT8_PER_TOKEN, PRESETS, Scheme
from qdeploy.sensitivity.candidates import Choice
from qdeploy.sensitivity.written import recipe_of, recipe_text
from tests.qdeploy.sensitivity.problems import W4, W4_ASYM, W8, W8A8, units_of

W4A8, CHANNELS = Scheme("W4A8", 4, 32, activations=INT8_PER_TOKEN), Scheme("W4A16", 4, None)
CHOICES: list[Choice] = [
    *(W4, W4_ASYM, W8, W8A8, W4A8, CHANNELS, PRESETS["FP8_DYNAMIC"], PRESETS["NVFP4A16"]),
    None,
]


@pytest.mark.parametrize("seed", range(4))
def test_the_file_gives_every_layer_what_was_chosen(tiny_family: Path, tmp_path: Path, seed: int) -> None:
    rng, units = random.Random(seed), units_of(tiny_family)
    chosen = {unit.name: rng.choice(CHOICES) for unit in units} | {units[0].name: W4}
    config = CalibrationConfig(samples=32)
    recipe = recipe_of(str(tiny_family), units, chosen, "smoothquant+gptq", config)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text(recipe, ["why"]))
    read = Recipe.from_yaml(path)
    assert read == recipe
    assert read.calibration == config
    planned = resolve_schemes(read, shapes(find_blocks(build_skeleton(CheckpointReader(tiny_family)))))
    expected = {name: chosen[unit.name] for unit in units for name in unit.layers}
    assert {name: planned[name].scheme if name in planned else None for name in expected} == expected
    assert {plan.method for plan in planned.values()} == {"smoothquant+gptq"}


def test_what_all_blocks_have_needs_no_numbers(tiny_llama: Path) -> None:
    units = units_of(tiny_llama)
    chosen: dict[str, Choice] = {unit.name: W8 if "o_proj" in unit.name else W4 for unit in units}
    chosen[units[-1].name] = None
    text = recipe_text(recipe_of("m", units, chosen, "gptq", CalibrationConfig()), ["a", "b"])
    assert text.startswith("# a\n# b\nmodel: m\n")
    assert [line for line in text.splitlines() if "match" in line] == [
        r"  - match: re:model\.layers\.\d+\.self_attn\.o_proj",
        r"  - match: re:model\.layers\.1\.mlp\.down_proj",
        "  - match: Linear",
    ]


def test_experts_are_named_once(tiny_model: Callable[[str], Path]) -> None:
    units = units_of(tiny_model("qwen3_moe"))
    chosen: dict[str, Choice] = {unit.name: W8A8 if unit.experts else None for unit in units}
    text = recipe_text(recipe_of("m", units, chosen, "rtn", CalibrationConfig()), [])
    assert "scheme: none" in text
    assert (
        r"mlp\.experts\.\d+\.(gate_proj|up_proj|down_proj)" in text
        or "match: Linear\n    scheme: W8A8" in text
    )
