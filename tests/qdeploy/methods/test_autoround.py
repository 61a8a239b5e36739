from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from qdeploy import tuned
from qdeploy.distributed import ALONE, processes
from qdeploy.memory import Budget
from qdeploy.methods.autoround import LEAST, AutoRound, _descend, _Errors, _put, _Tuned
from qdeploy.methods.base import LinearProblem, Solution, solve
from qdeploy.methods.tuning import BlockProblem, TunedLayer, tune
from qdeploy.modeling import blocks
from qdeploy.modeling.activations import Activations
from qdeploy.modeling.blocks import set_weight
from qdeploy.modeling.inputs import BlockCall
from qdeploy.pipeline import quantize
from qdeploy.planned import Planned
from qdeploy.quantized import QuantizedLinear, portable_scales
from qdeploy.recipe import Recipe
from qdeploy.schemes import PRESETS, Scheme
from qdeploy.solved import Solved
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
    # Hardly anything can be better, and the signs lead away from it.
    noise = 1e-5 * torch.randn(SAMPLES, TOKENS, WIDTH)
    block.outputs[:] = block.module(block.inputs[:]) + noise
    error = block.error()
    found = block.tuned(iterations=20)
    assert block.error() == error
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
    states: list[Tensor] = []

    def whole(problem: BlockProblem) -> Tensor:
        """What the 16-bit block puts out for what the 16-bit blocks before it do."""
        running = {name: layer.linear.weight for name, layer in problem.layers.items()}
        for layer in problem.layers.values():
            layer.put(layer.weight)
        states.append(problem.run(states[-1] if states else problem.inputs[:]))
        for name, weight in running.items():
            set_weight(problem.layers[name].linear, weight)
        return states[-1]

    def error(problem: BlockProblem) -> float:
        return float((problem.run(problem.inputs[:]) - problem.outputs[:]).square().mean())

    def watched(config: object, problem: BlockProblem) -> Mapping[str, QuantizedLinear]:
        torch.testing.assert_close(problem.outputs[:], whole(problem), rtol=1e-4, atol=1e-4)
        shares = {layer.share for layer in problem.layers.values()}
        assert min(shares) < 1 if family == "qwen3_moe" and len(problem.layers) > 7 else shares == {1.0}
        before, layers = error(problem), tune(config, problem)
        found.append((before, error(problem)))
        return layers

    monkeypatch.setattr(tuned, "tune", watched)
    quantize(recipe(tiny_model(family), iterations=60), tmp_path / "out")
    assert len(found) == {"llama": 2}.get(family, 3)
    assert all(after < 0.85 * before for before, after in found)


def plan(block: Block, **seeds: int) -> dict[str, Planned]:
    return {
        name: Planned(W3, AutoRound(iterations=2, seed=seeds.get(f"_{name}", 0))) for name in block.layers
    }


def together_tuned(block: Block, planned: dict[str, Planned]) -> dict[str, Solved]:
    call = BlockCall(blocks.Block("block", block.module), (), {})
    solved = {
        name: Solved(
            Solution(layer.quantized, 0.5),
            1.0,
            9,
        )
        for name, layer in block.layers.items()
    }
    with torch.no_grad():
        return tuned.tuned(call, block.inputs, block.outputs, block.layers, solved, planned, ALONE)


def test_the_error_is_that_of_what_was_found(tmp_path: Path) -> None:
    s = torch.exp2(torch.arange(WIDTH) % 4.0)
    block = Block(tmp_path, columns=s)
    found = together_tuned(block, plan(block))
    w, quantized = block.layers["0"].weight, found["0"].solution.quantized
    x = block.inputs[:].flatten(0, 1) / s
    lost = (x @ (w - quantized.dequantize()).T).square().sum() / (x @ w.T).square().sum()
    assert found["0"].solution.relative_error == pytest.approx(float(lost), rel=1e-4)
    assert {layer.solution.fallback for layer in found.values()} == {None}


def test_a_layer_that_nothing_reaches_and_broken_inputs_are_told(tmp_path: Path) -> None:
    block = Block(tmp_path)
    block.inputs[:] = torch.zeros(SAMPLES, TOKENS, WIDTH)
    for layer in together_tuned(block, plan(block)).values():
        assert layer.solution.fallback == "autoround: nothing but zeros reached it; rounded to nearest"
        assert layer.solution.relative_error == 0.5
    block = Block(tmp_path)
    block.inputs[:1] = torch.full((1, TOKENS, WIDTH), torch.nan)
    found = together_tuned(block, plan(block))
    for name, layer in found.items():
        assert "hold NaN or infinity; rounded to nearest" in str(layer.solution.fallback)
        assert torch.equal(layer.solution.quantized.dequantize(), block.layers[name].quantized.dequantize())


def test_each_setting_tunes_its_own_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, list[str]]] = []

    def watched(config: Any, problem: BlockProblem) -> Mapping[str, QuantizedLinear]:
        seen.append((config.seed, list(problem.layers)))
        return tune(config, problem)

    monkeypatch.setattr(tuned, "tune", watched)
    block = Block(tmp_path)
    together_tuned(block, plan(block, _2=5))
    assert seen == [(0, ["0"]), (5, ["2"])]


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


def test_a_step_goes_against_the_signs_of_the_gradient(tmp_path: Path) -> None:
    """Compared with torch's differentiation of Ŵ, rounding taken as the identity; columns scaled unevenly."""
    columns = torch.exp2(torch.arange(WIDTH) % 4.0)
    block = Block(tmp_path, columns=columns)
    errors = _Errors(block.problem(), AutoRound(batch=SAMPLES))
    tuned_layers = {name: _Tuned(layer) for name, layer in block.layers.items()}
    for layer in tuned_layers.values():
        # Where they begin α and β can go one way alone.
        layer._alpha.fill_(0.9)
        layer._beta.fill_(0.8)
    _put(block.problem(), tuned_layers)
    expected = {name: gradients(block, name) for name in block.layers}
    before = {
        name: [t.clone() for t in (layer._v, layer._alpha, layer._beta)]
        for name, layer in tuned_layers.items()
    }
    _descend(block.problem(), tuned_layers, errors, 0.01)
    for name, layer in tuned_layers.items():
        found = (layer._v, layer._alpha, layer._beta)
        for moved, was, gradient in zip(found, before[name], expected[name], strict=True):
            certain = gradient.abs() > 1e-6 * gradient.abs().max()
            assert certain.float().mean() > 0.8
            assert torch.equal((moved - was).sign()[certain], -gradient.sign()[certain])
            assert torch.equal(moved[gradient == 0], was[gradient == 0])
        assert (expected[name][0] == 0).any()  # codes at an end of their range


@pytest.mark.parametrize("scheme", ["W4A16", "W4A16_ASYM"])
def test_the_ends_of_the_grid_stay_within_the_range(scheme: str, tmp_path: Path) -> None:
    block = Block(tmp_path, replace(PRESETS[scheme], group_size=16))
    for name, layer in block.layers.items():
        tuned_layer = _Tuned(layer)
        for sign in (1, -1):
            for _ in range(4):
                tuned_layer.weight()
                tuned_layer.step(sign * torch.randn_like(layer.weight), 0.4)
                for end in (tuned_layer._alpha, tuned_layer._beta):
                    assert LEAST <= float(end.min()) <= float(end.max()) <= 1, name


@pytest.mark.parametrize(("scheme", "levels"), [("W8A16", 255), ("W4A16", 15), ("W2A16", 3)])
def test_an_end_moves_at_most_as_many_levels_as_at_4_bits(scheme: str, levels: int, tmp_path: Path) -> None:
    """A share of the range is many levels where there are many: 8 bits lost by it."""
    block = Block(tmp_path, replace(PRESETS[scheme], group_size=16))
    for layer in block.layers.values():
        tuned_layer = _Tuned(layer)
        tuned_layer.weight()
        tuned_layer.step(torch.randn_like(layer.weight), 0.02)
        moved = float((1 - tuned_layer._alpha).max()) * levels
        assert 0 < moved <= 0.02 * 15 * (1 + 1e-3)


def gradients(block: Block, name: str) -> tuple[Tensor, ...]:
    """Of the block's squared error by V, α and β of one layer, at 0, 0.9 and 0.8."""
    layer = block.layers[name]
    q, n = layer.quantized, len(layer.weight)
    assert q.zeros is not None
    v = torch.zeros(n, q.scales.shape[1], q.scheme.group_size or 0, requires_grad=True)
    w = layer.weight.view_as(v)
    alpha = torch.full((n, q.scales.shape[1], 1), 0.9, requires_grad=True)
    beta = torch.full((n, q.scales.shape[1], 1), 0.8, requires_grad=True)
    low, high = w.amin(-1, keepdim=True).clamp_max(0), w.amax(-1, keepdim=True).clamp_min(0)
    s = as_identity(portable_scales, (alpha * high - beta * low) / q.scheme.qmax)
    z = as_identity(torch.round, -beta * low / s)
    codes = (as_identity(torch.round, w / s + v) + z).clamp(0, q.scheme.qmax)
    weight = ((codes - z) * s).flatten(1)
    weight = weight if layer.columns is None else weight / layer.columns
    found = functional_call(block.module, {f"{name}.weight": weight}, (block.inputs[:],))
    return torch.autograd.grad((found - block.outputs[:]).square().sum(), (v, alpha, beta))


def as_identity(rounding: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What rounding makes of x, with the gradient of x."""
    return x + (rounding(x).float() - x).detach()
