from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qdeploy import tuned
from qdeploy.distributed import ALONE, processes
from qdeploy.memory import Budget
from qdeploy.methods.autoround import AutoRound
from qdeploy.methods.base import LinearProblem, solve
from qdeploy.methods.tuning import BlockProblem, TunedLayer, tune
from qdeploy.modeling.activations import Activations
from qdeploy.pipeline import quantize
from qdeploy.quantized import QuantizedLinear
from qdeploy.recipe import Recipe
from qdeploy.schemes import PRESETS, Scheme
from tests.qdeploy.processes import together
from tests.resuming import whole_and_resumed

SAMPLES, TOKENS, WIDTH = 12, 24, 32
W3 = replace(PRESETS["W3A16_ASYM"], group_size=16)


class Block:
    """Two layers with a nonlinearity between them, and what the 16-bit one puts out."""

    def __init__(self, spill: Path, scheme: Scheme = W3, columns: Tensor | None = None) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(
            nn.Linear(WIDTH, 48, bias=False), nn.SiLU(), nn.Linear(48, WIDTH, bias=False)
        )
        self.module.requires_grad_(False)
        self.inputs, self.outputs = (
            Activations((SAMPLES, TOKENS, WIDTH), spill, Budget(10**9)) for _ in "xy"
        )
        mixing = torch.randn(WIDTH, WIDTH) / WIDTH**0.5
        self.inputs[:] = torch.randn(SAMPLES, TOKENS, WIDTH) @ mixing
        self.outputs[:] = self.module(self.inputs[:])
        self.layers = {name: self.layer(name, scheme, columns) for name in ("0", "2")}

    def layer(self, name: str, scheme: Scheme, columns: Tensor | None) -> TunedLayer:
        linear = self.module.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        s = columns if name == "0" else None
        weight = linear.weight.detach() if s is None else linear.weight.detach() * s
        quantized = solve(AutoRound(), LinearProblem(name, weight, None, scheme)).quantized
        assert isinstance(quantized, QuantizedLinear)
        layer = TunedLayer(linear, weight, quantized, s)
        layer.put(quantized.dequantize())
        return layer

    def problem(self) -> BlockProblem:
        return BlockProblem("block", self.module, self.inputs, self.outputs, self.layers, ALONE)

    def error(self) -> float:
        with torch.no_grad():
            return float((self.module(self.inputs[:]) - self.outputs[:]).square().mean())

    def tuned(self, **settings: Any) -> Mapping[str, QuantizedLinear]:
        with torch.no_grad():
            return tune(AutoRound(**settings), self.problem())


@pytest.mark.parametrize("scheme", ["W2A16", "W3A16_ASYM", "W4A16", "W4A16_ASYM", "W4A8"])
def test_the_block_puts_out_less_error_than_with_rounding_to_nearest(scheme: str, tmp_path: Path) -> None:
    block = Block(tmp_path, replace(PRESETS[scheme], group_size=16))
    before = block.error()
    found = block.tuned(iterations=100)
    assert block.error() < 0.85 * before
    for name, layer in found.items():
        linear = block.layers[name].linear
        assert torch.equal(linear.weight, layer.dequantize())
        assert not linear.weight.requires_grad
        moved = layer.dequantize() - block.layers[name].weight
        assert moved.abs().max() < 2 * layer.steps.max()


def test_more_steps_find_more(tmp_path: Path) -> None:
    errors = []
    for iterations in (1, 20, 300):
        block = Block(tmp_path)
        block.tuned(iterations=iterations)
        errors.append(block.error())
    assert errors[0] > errors[1] > errors[2]


def test_it_never_ends_worse_than_it_began_on_the_samples_it_looks_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qdeploy.methods import autoround

    monkeypatch.setattr(autoround, "EVALUATED", SAMPLES)
    block = Block(tmp_path)
    before = {name: layer.quantized for name, layer in block.layers.items()}
    block.outputs[:] = block.module(block.inputs[:])  # nothing can be better
    found = block.tuned(iterations=20)
    assert block.error() == 0
    assert all(torch.equal(found[name].codes, before[name].codes) for name in found)


def test_scaled_columns_are_tuned_as_they_run(tmp_path: Path) -> None:
    """With powers of two that divide nothing unevenly, in one group, all is the same but for these."""
    s = torch.full((WIDTH,), 4.0)
    plain, scaled = Block(tmp_path), Block(tmp_path, columns=s)
    first, second = plain.tuned(iterations=30), scaled.tuned(iterations=30)
    assert torch.equal(first["0"].codes, second["0"].codes)
    assert torch.equal(first["0"].scales * 4, second["0"].scales)
    assert plain.error() == scaled.error()


def test_the_seed_decides(tmp_path: Path) -> None:
    first, again, other = (
        Block(tmp_path).tuned(iterations=20, batch=2, seed=seed)["0"].codes for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_layer_that_does_not_run_keeps_its_codes(tmp_path: Path) -> None:
    block = Block(tmp_path)
    idle = nn.Linear(WIDTH, 16, bias=False)
    block.module.add_module("idle", idle)
    layer = block.layer("idle", W3, None)
    block.layers["idle"] = layer
    run, block.module.forward = (
        block.module.forward,
        lambda x: block.module[2](block.module[1](block.module[0](x))),
    )
    found = block.tuned(iterations=10)
    assert torch.equal(found["idle"].codes, layer.quantized.codes)
    assert torch.equal(found["idle"].scales, layer.quantized.scales)
    assert run


def recipe(model: Path, method: str = "autoround", **settings: Any) -> Recipe:
    asked = Recipe.from_flags(
        str(model),
        scheme="W3A16_ASYM",
        method=method,
        group_size="16",
        calibration={"samples": 4, "sequence_length": 32},
    ).model_dump(mode="json")
    (config,) = asked["rules"][0]["stages"][-1].values()
    config.update(settings)
    return Recipe.model_validate(asked)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3_moe"])
def test_in_the_walk_every_block_ends_nearer_to_the_16_bit_models(
    family: str, tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma3 has no layer that writes to the stream as it is, and runs twice all the same."""
    found: list[tuple[float, float]] = []

    def error(problem: BlockProblem) -> float:
        every = slice(0, problem.inputs.shape[0])
        assert problem.outputs.shape == problem.inputs.shape
        return float((problem.run(problem.inputs[every]) - problem.outputs[every]).square().mean())

    def watched(config: object, problem: BlockProblem) -> Mapping[str, QuantizedLinear]:
        before, layers = error(problem), tune(config, problem)
        found.append((before, error(problem)))
        return layers

    monkeypatch.setattr(tuned, "tune", watched)
    quantize(recipe(tiny_model(family), iterations=60), tmp_path / "out")
    assert len(found) == {"llama": 2}.get(family, 3)
    assert all(after < 0.85 * before for before, after in found)


def test_an_expert_that_few_tokens_reach_is_moved_less(tmp_path: Path) -> None:
    moved = []
    for share in (0.0, 0.1, 1.0):
        block = Block(tmp_path)
        block.layers["0"] = replace(block.layers["0"], share=share)
        before = block.layers["0"].quantized.dequantize()
        moved.append(float((block.tuned(iterations=40)["0"].dequantize() - before).abs().mean()))
    assert moved[0] == 0
    assert moved[1] < 0.5 * moved[2]


@pytest.mark.parametrize("in_order", [True, False])
def test_it_goes_on_after_an_interruption(in_order: bool, tiny_llama: Path, tmp_path: Path) -> None:
    asked = recipe(tiny_llama, iterations=5).model_copy(update={"true_sequential": in_order})
    whole, resumed = whole_and_resumed(asked, tmp_path)
    assert whole == resumed


def test_other_layers_may_have_other_methods(tiny_llama: Path, tmp_path: Path) -> None:
    asked = recipe(tiny_llama, iterations=5).model_dump(mode="json")
    gptq = {"match": "re:.*(o|down)_proj", "scheme": "W8A8", "stages": ["gptq"]}
    asked["rules"].insert(0, gptq)
    manifest = quantize(Recipe.model_validate(asked), tmp_path / "out")
    methods = {module["name"].rpartition(".")[2]: module["method"] for module in manifest["modules"]}
    assert methods["o_proj"] == methods["down_proj"] == "gptq"
    assert methods["q_proj"] == methods["up_proj"] == "autoround"


def test_processes_find_the_same_together(tmp_path: Path) -> None:
    ended = together(2, tmp_path / "log", tune_a_part)
    assert [(end.code, end.stderr) for end in ended] == [(0, "")] * 2


def tune_a_part(_: int) -> None:
    with processes() as group, TemporaryDirectory() as folder, torch.no_grad():
        block = Block(Path(folder))
        own = group.part(SAMPLES)
        before = block.error()
        inputs, outputs = (
            Activations((own.stop - own.start, TOKENS, WIDTH), Path(folder), Budget(10**9)) for _ in "xy"
        )
        inputs[:], outputs[:] = block.inputs[own], block.outputs[own]
        problem = replace(block.problem(), inputs=inputs, outputs=outputs, group=group)
        found = tune(AutoRound(iterations=60, batch=7), problem)
        assert block.error() < 0.8 * before  # over the samples of both
        for layer in found.values():
            assert torch.equal(group.share(layer.codes), layer.codes)
            assert torch.equal(group.share(layer.scales), layer.scales)
