"""Mixtures of experts from the 16-bit folder to the packed one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from qdeploy import pipeline
from qdeploy.calibration.tokenizer import load_tokenizer
from qdeploy.formats.compressed_tensors import module_schemes, read_linear
from qdeploy.formats.dequantize import dequantized_model
from qdeploy.memory import Budget
from qdeploy.modeling import products
from qdeploy.modeling.checkpoint import SINGLE, CheckpointReader
from qdeploy.module_names import expert_of
from qdeploy.pipeline import quantize
from qdeploy.recipe import Recipe
from tests.conftest import EXPERT_FAMILIES, save_tiny

CALIBRATION = {"samples": 4, "sequence_length": 32}
TOKENS = torch.arange(20)[None]

families = pytest.mark.parametrize("family", EXPERT_FAMILIES)


def recipe(model: Path, **flags: Any) -> Recipe:
    return Recipe.from_flags(str(model), **({"group_size": "32", "calibration": CALIBRATION} | flags))


def only_experts(model: Path) -> Recipe:
    rule = {"match": r"re:.*\.experts\.\d+\..*", "scheme": {"bits": 4, "group": 32}}
    return Recipe.model_validate({"model": str(model), "rules": [rule], "calibration": CALIBRATION})


def starved(folder: Path, expert: int) -> Path:
    """A tiny Mixtral whose routers choose two of five experts, but never `expert`.

    The norm before the router lets one direction through alone, whose sign decides: two of the others are
    preferred for either.
    """
    save_tiny(folder, "mixtral", num_local_experts=5)
    tensors = load_file(folder / SINGLE)
    others = [i for i in range(5) if i != expert]
    for layer in range(2):
        norm = f"model.layers.{layer}.post_attention_layernorm.weight"
        gate = f"model.layers.{layer}.block_sparse_moe.gate.weight"
        tensors[norm] = torch.eye(64, dtype=torch.bfloat16)[0]
        tensors[gate] = torch.zeros_like(tensors[gate])
        tensors[gate][others, 0] = torch.tensor([1.0, 0.5, -0.5, -1.0], dtype=torch.bfloat16)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    return folder


@families
def test_what_is_written_has_the_checkpoints_names(
    tiny_model: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    quantize(recipe(tiny_model(family), method="rtn"), tmp_path / "out")
    source, reader = CheckpointReader(tiny_model(family)), CheckpointReader(tmp_path / "out")
    packed = set(module_schemes(reader.config, reader))
    assert {f"{name}.weight" for name in packed} <= set(source.names)
    assert sum(expert_of(name) is not None for name in packed) >= 24
    ignored = set(reader.config["quantization_config"]["ignore"])
    matrices = {name.removesuffix(".weight") for name in source.names if len(source.shape(name)) == 2}
    assert ignored | packed == matrices - {"model.embed_tokens"}
    assert all("gate" in name for name in ignored - {"lm_head"})
    assert not any(name.endswith(("mlp.gate", "moe.gate", "shared_expert_gate")) for name in packed)


@families
@torch.no_grad()
def test_tokens_are_counted_by_expert(tiny_model: Callable[[str], Path], tmp_path: Path, family: str) -> None:
    """In the first block nothing before the experts is quantized, so the 16-bit model counts the same."""
    folder = tiny_model(family)
    asked = only_experts(folder)
    manifest = quantize(asked, tmp_path / "out")
    tokens = pipeline.load_calibration(asked.calibration, load_tokenizer(folder)).tokens
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    chosen: list[torch.Tensor] = []
    model.model.layers[0].mlp.experts.register_forward_pre_hook(lambda _, args: chosen.append(args[1]))
    model(tokens, use_cache=False)
    counts = torch.bincount(chosen[0].flatten(), minlength=8).tolist()
    assert sum(counts) == 2 * tokens.numel()
    for module in manifest["modules"]:
        path, number = expert_of(module["name"]) or ("", 0)
        if ".layers.0." in path:
            assert module["tokens"] == counts[number]


@families
def test_short_memory_changes_nothing(tiny_model: Callable[[str], Path], tmp_path: Path, family: str) -> None:
    quantize(recipe(tiny_model(family)), tmp_path / "ample")
    quantize(recipe(tiny_model(family)), tmp_path / "short", limits=Budget(1), force=True)
    ample, short = (
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.safetensors")}
        for name in ("ample", "short")
    )
    assert ample == short


def test_an_expert_without_tokens_is_rounded_and_one_with_few_is_shrunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Sums of two bfloat16 may be exactly zero, which has no sign.
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda: False)
    folder = starved(tmp_path / "starved", expert=2)
    manifest = quantize(recipe(folder), tmp_path / "out")
    for module in manifest["modules"]:
        expert = expert_of(module["name"])
        if expert is None or module["tokens"] >= module["shape"][1]:
            assert module["fallback"] is None
        elif expert[1] == 2:
            assert module["tokens"] == 0
            assert "no calibration token reached it; rounded to nearest" in module["fallback"]
        else:
            assert f"only {module['tokens']} calibration tokens" in module["fallback"]
    fallen = {expert_of(module["name"]) for module in manifest["modules"] if module["fallback"]}
    assert {(f"model.layers.{layer}.block_sparse_moe.experts", 2) for layer in (0, 1)} <= fallen


@families
@torch.no_grad()
def test_the_reference_computes_with_the_packed_experts(
    tiny_model: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    quantize(recipe(tiny_model(family), scheme="W8A16", method="rtn"), tmp_path / "out")
    reader = CheckpointReader(tmp_path / "out")
    model = dequantized_model(tmp_path / "out")
    for name, scheme in module_schemes(reader.config, reader).items():
        assert torch.equal(model.get_submodule(name).weight, read_linear(reader, name, scheme).dequantize())
    expected = AutoModelForCausalLM.from_pretrained(tiny_model(family), dtype=torch.float32)
    before, after = expected(TOKENS).logits, model(TOKENS).logits
    # Where rounding sends a token to another expert, its logits move far.
    assert 0 < (after - before).norm() / before.norm() < 0.2


@torch.no_grad()
def test_the_inputs_of_experts_are_rounded_where_the_scheme_says_so(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    quantize(recipe(tiny_model("mixtral"), scheme="W8A8", method="rtn", group_size=None), tmp_path / "out")
    model = dequantized_model(tmp_path / "out")
    expert = model.model.layers[0].block_sparse_moe.experts.get_submodule("0")
    x = torch.randn(3, 64)
    rounded = (x / x.abs().amax(-1, keepdim=True) * 127).round() * x.abs().amax(-1, keepdim=True) / 127
    torch.testing.assert_close(expert.w1(x), rounded @ expert.w1.weight.T)
    assert not torch.allclose(expert.w1(x), x @ expert.w1.weight.T, atol=1e-5)
