"""Every number format through the walk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from qdeploy.calibration import load
from qdeploy.errors import QuantizationError
from qdeploy.formats.compressed_tensors import module_schemes, read_linear
from qdeploy.formats.dequantize import dequantized_model
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.pipeline import quantize
from qdeploy.quantized import QuantizedLinear
from qdeploy.recipe import Recipe
from qdeploy.rounded_inputs import static_scale
from qdeploy.schemes import PRESETS
from tests.resuming import whole_and_resumed

CALIBRATION = {"samples": 4, "sequence_length": 32}
TOKENS = torch.arange(32).reshape(2, 16)


def recipe(model: Path, scheme: str, **flags: Any) -> Recipe:
    return Recipe.from_flags(
        str(model), scheme=scheme, group_size="auto", **({"calibration": CALIBRATION} | flags)
    )


def layers(folder: Path) -> dict[str, QuantizedLinear]:
    reader = CheckpointReader(folder)
    return {
        name: read_linear(reader, name, scheme)
        for name, scheme in module_schemes(reader.config, reader).items()
    }


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(TOKENS).logits.log_softmax(-1)


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("scheme", PRESETS)
def test_what_is_written_computes_nearly_what_the_model_did(
    scheme: str, method: str, wide: Path, tmp_path: Path
) -> None:
    manifest = quantize(recipe(wide, scheme, method=method), tmp_path / "out")
    assert all(module["fallback"] is None for module in manifest["modules"])
    whole = logits(AutoModelForCausalLM.from_pretrained(wide, dtype=torch.float32))
    found = logits(dequantized_model(tmp_path / "out"))
    kl = float((whole.exp() * (whole - found)).sum(-1).mean())
    kind = PRESETS[scheme]
    # E4M3 has three bits behind the point, wherever that is: as much as integers of about six.
    limit = {8: 0.02, 4: 0.3} if kind.element else {8: 0.002, 4: 0.1, 3: 0.4, 2: 1.5}
    assert 0 < kl < limit[kind.bits]


@pytest.mark.parametrize("scheme", ["FP8", "NVFP4"])
def test_layers_that_run_as_one_share_their_scale(scheme: str, wide: Path, tmp_path: Path) -> None:
    quantize(recipe(wide, scheme, method="rtn"), tmp_path / "out")
    found, source = layers(tmp_path / "out"), CheckpointReader(wide)
    for names in (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("mlp.gate_proj", "mlp.up_proj"),
    ):
        full = [f"model.layers.0.{name}" for name in names]
        largest = max(float(source.get(f"{name}.weight").abs().amax()) for name in full)
        for q in (found[name] for name in full):
            spans = q.steps[0, 0] * 448 if q.divisor is None else 448 * 6 / q.divisor
            assert float(spans) == pytest.approx(largest, rel=2**-8)


@pytest.mark.parametrize("method", ["rtn", "smoothquant+rtn"])
@pytest.mark.parametrize("scheme", ["FP8", "W8A8_STATIC", "NVFP4"])
@torch.no_grad()
def test_static_scales_span_what_the_calibration_holds(
    scheme: str, method: str, wide: Path, tmp_path: Path
) -> None:
    asked = recipe(wide, scheme, method=method)
    quantize(asked, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(wide, dtype=torch.float32)
    seen: list[Tensor] = []
    block, norm = model.model.layers[0], "model.layers.0.input_layernorm.weight"
    block.input_layernorm.weight.copy_(CheckpointReader(tmp_path / "out").get(norm))
    block.self_attn.q_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0].abs().amax()))
    model(load(asked.calibration, AutoTokenizer.from_pretrained(wide)).tokens)
    how = PRESETS[scheme].activations
    assert how is not None
    found = layers(tmp_path / "out")["model.layers.0.self_attn.q_proj"].input_scale
    assert found is not None
    torch.testing.assert_close(found, static_scale(seen[0], how), rtol=0.01, atol=0)


def test_what_shares_its_scales_takes_no_channel_scales_over(wide: Path, tmp_path: Path) -> None:
    manifest = quantize(recipe(wide, "NVFP4A16", method="awq+gptq"), tmp_path / "out")
    told = {module["name"].rpartition(".")[2]: module["fallback"] for module in manifest["modules"]}
    assert {name for name, fallback in told.items() if fallback} == {"o_proj", "down_proj"}
    assert "its transforms were left out" in told["o_proj"]


def test_a_static_scale_needs_tokens(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    few = {"samples": 1, "sequence_length": 8}
    asked = recipe(tiny_model("qwen3_moe"), "FP8", method="rtn", calibration=few)
    with pytest.raises(QuantizationError, match=r"experts.* no calibration token reached it.* FP8_DYNAMIC"):
        quantize(asked, tmp_path / "out")


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "NVFP4", "W4A8", "W8A8_STATIC"])
def test_a_resumed_run_ends_in_the_same_bytes(scheme: str, wide: Path, tmp_path: Path) -> None:
    asked = recipe(wide, scheme, method="gptq")
    whole, resumed = whole_and_resumed(asked, tmp_path)
    assert resumed == whole
