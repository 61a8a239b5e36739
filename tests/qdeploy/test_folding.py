"""Channel scalings in the walk: one pass gives what quantizing the folded model gives."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from qdeploy import stack
from qdeploy.distributed import ALONE
from qdeploy.errors import RecipeError
from qdeploy.folding import Folding
from qdeploy.formats.dequantize import dequantized_model
from qdeploy.memory import Budget
from qdeploy.methods.rtn import RTN
from qdeploy.methods.scaling import SMALLEST, ChannelProblem, scaling
from qdeploy.methods.smoothquant import SmoothQuant
from qdeploy.modeling.blocks import find_blocks
from qdeploy.modeling.checkpoint import SINGLE, CheckpointReader
from qdeploy.modeling.experts import split_experts
from qdeploy.modeling.feeds import divided_rows
from qdeploy.modeling.inputs import BlockCall, enter
from qdeploy.modeling.skeleton import build_skeleton, materialized
from qdeploy.pipeline import quantize
from qdeploy.planned import Planned
from qdeploy.recipe import Recipe
from qdeploy.schemes import Scheme
from qdeploy.solved import SolvedBlock
from qdeploy.walk import quantize_with_data
from tests.conftest import FAMILIES
from tests.qdeploy.test_pipeline import all_tensors, recipe, unpacked
from tests.resuming import whole_and_resumed

TRANSFORMS = ("smoothquant", "awq", "smoothquant+awq")
CPU = torch.device("cpu")
ROUNDERS = ("rtn", "gptq", "ldlq", "hqq")
READERS = {
    "input_layernorm": ("q_proj", "k_proj", "v_proj", "qkv_proj"),
    "post_attention_layernorm": ("gate_proj", "up_proj", "gate_up_proj"),
}


def with_outliers(folder: Path, source: Path) -> Path:
    """A model whose norms make some channels twenty times as large as others."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / SINGLE)
    for name, tensor in tensors.items():
        if "pre_feedforward_layernorm" in name or ("gemma" in source.name and "input_layernorm" in name):
            tensor[::13] = 20  # they multiply by 1 + w
        elif tensor.dim() == 1 and "layernorm" in name:
            tensor[::13] *= 20
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    return folder


@pytest.fixture
def outlying(tiny_llama: Path, tmp_path: Path) -> Path:
    return with_outliers(tmp_path / "model", tiny_llama)


@pytest.fixture
def divided(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Tensor]]:
    """Filled, while quantizing, with what the rows of each layer were divided by."""
    found: dict[str, Tensor] = {}
    solve = stack.quantize_with_data

    def noted(*arguments: Any, **options: Any) -> SolvedBlock:
        solved = solve(*arguments, **options)
        found.update(solved.divided)
        return solved

    monkeypatch.setattr(stack, "quantize_with_data", noted)
    yield found


def folded(folder: Path, source: Path, divided: dict[str, Tensor], readers: dict[str, Tensor]) -> Path:
    """The 16-bit model with rows divided by these scales, and columns of readers multiplied by theirs."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / SINGLE)
    for name, tensor in tensors.items():
        owner = name.rpartition(".")[0]
        if owner in divided:
            tensors[name] = divided_rows({name: tensor}, divided[owner])[name]
        if owner in readers:
            tensors[name] = (tensors[name] * readers[owner]).to(tensor.dtype)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    return folder


def columns(divided: dict[str, Tensor]) -> dict[str, Tensor]:
    """For a Llama of 4 query heads on 2 value heads: reader → what its columns are multiplied by."""
    found = {}
    for name, s in divided.items():
        block, _, leaf = name.rpartition(".")
        if leaf == "v_proj":
            found[f"{block}.o_proj"] = s.view(2, -1).repeat_interleave(2, 0).flatten()
        elif leaf == "up_proj":
            found[f"{block}.down_proj"] = s
        else:
            inner = "self_attn" if leaf == "input_layernorm" else "mlp"
            found |= {f"{block}.{inner}.{reader}": s for reader in READERS[leaf]}
    return found


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("rounder", ROUNDERS)
@pytest.mark.parametrize("in_order", [True, False], ids=["in order", "together"])
def test_stacking_in_one_pass_equals_quantizing_the_folded_model(
    outlying: Path, tmp_path: Path, divided: dict[str, Tensor], transform: str, rounder: str, in_order: bool
) -> None:
    scheme = {"scheme": "W8A8", "group_size": None}
    asked = recipe(outlying, method=f"{transform}+{rounder}", **scheme)
    quantize(asked.model_copy(update={"true_sequential": in_order}), tmp_path / "stacked")
    assert len(divided) == 2 * 4  # blocks, feeds
    assert all(s.log2().frac().eq(0).all() for s in divided.values())
    assert sum(int((s != 1).sum()) for s in divided.values()) > 50

    model = folded(tmp_path / "folded", outlying, divided, columns(divided))
    tokens = torch.arange(20)[None]
    logits = [
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)(tokens).logits
        for folder in (outlying, model)
    ]
    torch.testing.assert_close(*logits, rtol=1e-12, atol=1e-12)

    # RTN looks at no data of its own; with smoothing it has some, which changes none of its codes.
    asked = recipe(model, method=rounder, **scheme).model_copy(update={"true_sequential": in_order})
    quantize(asked, tmp_path / "expected")
    found, expected = all_tensors(tmp_path / "stacked"), all_tensors(tmp_path / "expected")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_smoothing_keeps_the_logits_of_each_family(
    tiny_model: Callable[[str], Path], tmp_path: Path, divided: dict[str, Tensor], family: str
) -> None:
    source = with_outliers(tmp_path / "model", tiny_model(family))
    quantize(recipe(source, scheme="W8A16", method="smoothquant+rtn"), tmp_path / "out")
    assert divided
    tokens = torch.arange(20)[None]
    expected = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    before = expected(tokens).logits
    split_experts(expected)
    written = all_tensors(tmp_path / "out")
    for name, parameter in expected.named_parameters():
        if name in written:
            parameter.data = written[name].float()
    for name, layer in unpacked(tmp_path / "out").items():
        expected.get_submodule(name).weight.data = layer.dequantize()
    after = expected(tokens).logits
    assert 0 < (after - before).norm() / before.norm() < 0.1


@torch.no_grad()
def test_norms_of_one_plus_w_are_folded_exactly(
    tiny_model: Callable[[str], Path], tmp_path: Path, divided: dict[str, Tensor]
) -> None:
    """What 16 bits cannot hold of the divided norm is in the columns of its readers."""
    source = with_outliers(tmp_path / "model", tiny_model("gemma3_text"))
    quantize(recipe(source, scheme="W8A16", method="smoothquant+rtn"), tmp_path / "out")
    written = all_tensors(tmp_path / "out")
    tokens = torch.arange(20)[None]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float64)
    before = model(tokens).logits
    for name, s in divided.items():
        block, _, leaf = name.rpartition(".")
        if leaf in ("input_layernorm", "pre_feedforward_layernorm"):
            assert (s != 1).sum() > 10
            assert (s.log2() - s.log2().round()).abs().max() < 0.1
            model.get_submodule(name).weight.data = written[f"{name}.weight"].double()
            inner = "self_attn" if leaf == "input_layernorm" else "mlp"
            for reader, linear in model.get_submodule(f"{block}.{inner}").named_children():
                if reader in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
                    linear.weight.data *= s.double()
    torch.testing.assert_close(model(tokens).logits, before, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_smoothing_helps_a_model_whose_norms_are_one_plus_w(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    source = with_outliers(tmp_path / "model", tiny_model("gemma3_text"))
    tokens = torch.arange(40)[None]
    expected = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)(tokens).logits
    lost = {}
    for method in ("rtn", "smoothquant+rtn"):
        quantize(recipe(source, scheme="W8A8", group_size=None, method=method), tmp_path / method)
        lost[method] = float((dequantized_model(tmp_path / method)(tokens).logits - expected).norm())
    assert lost["smoothquant+rtn"] < 0.7 * lost["rtn"]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_run_that_resumes_ends_in_the_same_bytes(
    tiny_model: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    outlying = with_outliers(tmp_path / "model", tiny_model(family))
    asked = recipe(outlying, method="smoothquant+gptq", scheme="W8A8", group_size=None)
    whole, resumed = whole_and_resumed(asked, tmp_path)
    assert resumed == whole


def test_layers_without_a_feed_are_left_alone_and_told(
    tiny_model: Callable[[str], Path], tmp_path: Path, divided: dict[str, Tensor]
) -> None:
    manifest = quantize(recipe(tiny_model("mixtral"), method="smoothquant+rtn"), tmp_path / "out")
    told = {module["name"]: module["fallback"] for module in manifest["modules"]}
    assert "no norm or layer before it" in told["model.layers.0.block_sparse_moe.experts.0.w1"]
    assert told["model.layers.0.self_attn.q_proj"] is None
    assert "post_attention_layernorm" not in {name.rpartition(".")[2] for name in divided}
    assert {module["method"] for module in manifest["modules"]} == {"smoothquant+rtn"}


def test_a_layer_left_in_16_bit_can_feed(outlying: Path, tmp_path: Path, divided: dict[str, Tensor]) -> None:
    smoothed = {
        "match": r"re:.*down_proj",
        "scheme": "W8A8",
        "stages": [{"smoothquant": {"alpha": 0.8}}, "rtn"],
    }
    asked = {
        "model": str(outlying),
        "rules": [smoothed],
        "calibration": {"samples": 4, "sequence_length": 32},
    }
    quantize(Recipe.model_validate(asked), tmp_path / "out")
    assert {name.rpartition(".")[2] for name in divided} == {"up_proj"}
    source, written = all_tensors(outlying), all_tensors(tmp_path / "out")
    for name, s in divided.items():
        assert torch.equal(written[f"{name}.weight"] * s.unsqueeze(1), source[f"{name}.weight"].float())


@dataclass(frozen=True)
class Probe:
    """A transform that asks for one scale, and notes what leaving the weights alone would cost."""

    scale: float
    costs: list[float]


@scaling(Probe)
def probed(config: Probe, problem: ChannelProblem) -> Tensor:
    config.costs.append(problem.error(problem.weights))
    return torch.full_like(problem.mean, config.scale)


def test_each_transform_goes_on_from_the_one_before(outlying: Path) -> None:
    reader, costs = CheckpointReader(outlying), list[float]()
    model = build_skeleton(reader)
    blocks = find_blocks(model)
    plan = {
        name: Planned(Scheme("W8A16", 8, 32), RTN(), (Probe(256.0, costs), Probe(256.0, costs)))
        for name in blocks[0].linears()
    }
    tokens = torch.arange(48).view(2, 24)
    calls, states = enter(model, blocks, tokens, reader, CPU, outlying, Budget(10**9))
    with torch.no_grad(), materialized(model, blocks[0], reader, CPU):
        norm = blocks[0].module.get_parameter("input_layernorm.weight").clone()
        found = quantize_with_data(calls[0], states, plan, true_sequential=True, outputs=False)
    assert costs == [0] * 8  # groups, transforms
    assert set(found.divided) == {
        f"{blocks[0].name}.{name}"
        for name in ("input_layernorm", "self_attn.v_proj", "post_attention_layernorm", "mlp.up_proj")
    }
    # 256 times 256 is more than weights around 1 bear.
    divided = found.divided[f"{blocks[0].name}.input_layernorm"]
    assert divided.max() > 256
    assert (norm.abs() / divided).min() >= SMALLEST


def test_layers_that_read_the_same_need_the_same_transforms(outlying: Path) -> None:
    reader = CheckpointReader(outlying)
    model = build_skeleton(reader)
    (block, *_) = find_blocks(model)
    q, k = (f"{block.name}.self_attn.{leaf}" for leaf in ("q_proj", "k_proj"))
    plan = {
        q: Planned(Scheme("W8A8", 8, None), RTN(), (SmoothQuant(),)),
        k: Planned(Scheme("W8A8", 8, None), RTN()),
    }
    with pytest.raises(RecipeError, match=rf"{q}: smoothquant\+rtn, {k}: rtn\. Give them one rule"):
        Folding(BlockCall(block, (), {}), list, [[q, k]], plan, ALONE)
    del plan[k]
    with pytest.raises(RecipeError, match=rf"{k}: 16 bit"):
        Folding(BlockCall(block, (), {}), list, [[q, k]], plan, ALONE)
