"""Scales for keys and values: what the walk finds, what it writes, and what rounding by them does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from qdeploy import stack
from qdeploy.calibration import load as load_calibration
from qdeploy.calibration.tokenizer import load_tokenizer
from qdeploy.checkpoint.inspection import inspect_checkpoint
from qdeploy.errors import RecipeError
from qdeploy.formats.dequantize import dequantized_model
from qdeploy.kv_cache import round_cache, stored_scales
from qdeploy.memory import Budget
from qdeploy.modeling import products
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.pipeline import quantize
from qdeploy.recipe import Recipe
from tests.qdeploy.test_conversion import per_head
from tests.qdeploy.test_pipeline import recipe, shard_bytes

TOKENS = torch.arange(40)[None]


def cached(model: Any, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer, as transformers' own cache holds them."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(tokens, cache=cache, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]


@contextmanager
def unrounded(folder: Path) -> Iterator[Any]:
    """The quantized model with its cache in 32 bits."""
    model = dequantized_model(folder)
    for module in model.modules():
        module.__dict__.pop("qdeploy_seen_by", None)
    yield model


@pytest.mark.parametrize(
    ("method", "true_sequential"), [("gptq", True), ("gptq", False), ("rtn", True), ("autoround", True)]
)
def test_the_largest_of_the_calibration_becomes_the_largest_number(
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    true_sequential: bool,
) -> None:
    """Of the quantized model, in whichever way the walk goes through a block."""
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda: False)  # the model below is float32
    several = {"samples": 24, "sequence_length": 64}  # micro-batches
    asked = recipe(tiny_llama, method=method, kv_cache="fp8", calibration=several)
    quantize(asked.model_copy(update={"true_sequential": true_sequential}), tmp_path / "out")
    tokens = load_calibration(asked.calibration, load_tokenizer(tiny_llama)).tokens
    found = stored_scales(CheckpointReader(tmp_path / "out"))
    assert list(found) == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    with unrounded(tmp_path / "out") as model:
        for scales, attended in zip(found.values(), cached(model, tokens), strict=True):
            for suffix, x in zip(("k_scale", "v_scale"), attended, strict=True):
                assert float(scales[suffix]) == pytest.approx(float(x.abs().amax()) / 448, rel=2**-8)


def test_every_family_has_scales(tiny_family: Path, tmp_path: Path) -> None:
    manifest = quantize(recipe(tiny_family, method="rtn", kv_cache="fp8"), tmp_path / "out")
    reader = CheckpointReader(tmp_path / "out")
    layers = reader.config["num_hidden_layers"]
    assert list(manifest["kv_cache"]) == [f"model.layers.{i}.self_attn" for i in range(layers)]
    stored = stored_scales(reader)
    told = {name: {suffix: float(scale) for suffix, scale in own.items()} for name, own in stored.items()}
    assert told == manifest["kv_cache"]
    for module in manifest["kv_cache"]:
        for suffix in ("q_scale", "k_scale", "v_scale"):
            scale = reader.get(f"{module}.{suffix}")
            assert (scale.dtype, scale.shape) == (torch.bfloat16, (1,))
            assert scale > 0
    scheme = reader.config["quantization_config"]["kv_cache_scheme"]
    assert (scheme["num_bits"], scheme["type"], scheme["strategy"]) == (8, "float", "tensor")
    assert scheme["symmetric"]


def test_codes_and_errors_are_those_without_a_cache(tiny_llama: Path, tmp_path: Path) -> None:
    for method in ("gptq", "rtn", "autoround"):
        layers = []
        for kv_cache in (None, "fp8"):
            asked = recipe(tiny_llama, method=method, kv_cache=kv_cache)
            made = quantize(asked, tmp_path / f"{method}-{kv_cache}")
            layers.append([(m["fingerprint"], m["relative_error"]) for m in made["modules"]])
        assert layers[0] == layers[1]
        assert made["calibration"]["samples"] == 4


def test_attention_reads_what_a_cache_in_fp8_holds(tiny_llama: Path, tmp_path: Path) -> None:
    """As when keys and values are cast to torch's own float8 on their way into transformers' cache."""
    quantize(recipe(tiny_llama, method="rtn", kv_cache="fp8"), tmp_path / "out")
    scales = list(stored_scales(CheckpointReader(tmp_path / "out")).values())

    class Cache(DynamicCache):
        def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> Any:
            k, v = (
                (x / scales[layer][suffix]).clamp(-448, 448).to(torch.float8_e4m3fn).float()
                * scales[layer][suffix]
                for x, suffix in ((keys, "k_scale"), (values, "v_scale"))
            )
            return super().update(k, v, layer, *args, **kwargs)

    with torch.no_grad():
        found = dequantized_model(tmp_path / "out")(TOKENS).logits
        with unrounded(tmp_path / "out") as model:
            plain = model(TOKENS).logits
            expected = model(TOKENS, cache=Cache(config=model.config), use_cache=True).logits
    torch.testing.assert_close(found, expected)
    assert (plain - expected).abs().max() > 100 * (found - expected).abs().max()


def test_other_tools_scales_for_each_head_are_read(tiny_llama: Path, tmp_path: Path) -> None:
    quantize(recipe(tiny_llama, method="rtn", kv_cache="fp8"), tmp_path / "out")
    with torch.no_grad():
        expected = dequantized_model(tmp_path / "out")(TOKENS).logits
        per_head(tmp_path / "out")
        assert torch.equal(dequantized_model(tmp_path / "out")(TOKENS).logits, expected)
    assert inspect_checkpoint(tmp_path / "out").kv_cache == 2


def test_where_a_scale_is_missing_it_is_1(tiny_llama: Path, tmp_path: Path) -> None:
    """As engines take it."""
    quantize(recipe(tiny_llama, method="rtn", kv_cache="fp8"), tmp_path / "out")
    scales = stored_scales(CheckpointReader(tmp_path / "out"))
    with torch.no_grad(), unrounded(tmp_path / "out") as model:
        ones = {name: own | {"v_scale": torch.ones(1)} for name, own in scales.items()}
        found = []
        for each in (
            ones,
            {name: {k: s for k, s in own.items() if k != "v_scale"} for name, own in ones.items()},
        ):
            end = round_cache(model, each)
            found.append(model(TOKENS).logits)
            end()
    assert torch.equal(*found)


def test_sliding_windows_keep_their_masks(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """Behind another name of attention transformers would leave masks out."""
    quantize(recipe(tiny_model("gemma3_text"), method="rtn", kv_cache="fp8"), tmp_path / "out")
    with torch.no_grad(), unrounded(tmp_path / "out") as model:
        seen = model(TOKENS).logits
        for module in model.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation = "sdpa"
        assert torch.equal(model(TOKENS).logits, seen)


def test_eager_attention_is_seen_too(tiny_llama: Path, tmp_path: Path) -> None:
    quantize(recipe(tiny_llama, method="rtn", kv_cache="fp8"), tmp_path / "out")
    with torch.no_grad():
        model = dequantized_model(tmp_path / "out")
        expected = model(TOKENS).logits
        model.config._attn_implementation = "eager"
        end = round_cache(model, stored_scales(CheckpointReader(tmp_path / "out")))
        torch.testing.assert_close(model(TOKENS).logits, expected)
        end()
        assert model.config._attn_implementation == "eager"
        assert not torch.allclose(model(TOKENS).logits, expected)


def test_scales_do_not_depend_on_the_memory(tiny_llama: Path, tmp_path: Path) -> None:
    asked = recipe(tiny_llama, kv_cache="fp8", calibration={"samples": 40, "sequence_length": 32})
    for name, limits in (("ample", None), ("scarce", Budget(1 << 18))):
        quantize(asked, tmp_path / name, limits=limits, force=True)
    assert shard_bytes(tmp_path / "ample") == shard_bytes(tmp_path / "scarce")


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_an_interrupted_run_finds_the_same_scales(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    asked = recipe(tiny_llama, method=method, kv_cache="fp8")
    expected = quantize(asked, tmp_path / "whole")
    original = stack.Stack._with_data

    def stop_at_the_second(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.writer.done("model.layers.0"):
            raise KeyboardInterrupt
        original(self, *args, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(Exception, match="Interrupted"):
        patched.setattr(stack.Stack, "_with_data", stop_at_the_second)
        quantize(asked, tmp_path / "out")
    assert quantize(asked, tmp_path / "out")["kv_cache"] == expected["kv_cache"]
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "whole")


def test_inspect_tells_of_it(tiny_llama: Path, tmp_path: Path) -> None:
    quantize(recipe(tiny_llama, method="rtn", kv_cache="fp8"), tmp_path / "fp8")
    quantize(recipe(tiny_llama, method="rtn"), tmp_path / "plain")
    found, plain = inspect_checkpoint(tmp_path / "fp8"), inspect_checkpoint(tmp_path / "plain")
    assert (found.kv_cache, plain.kv_cache) == (2, 0)
    assert found.parameters == plain.parameters
    assert found.bytes - plain.bytes == 2 * 3 * 2  # layers × scales × bfloat16


def test_a_layer_must_be_packed(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"needs a layer that is stored packed, and spqr stores all in 16"):
        quantize(recipe(tiny_llama, method="spqr", kv_cache="fp8"), tmp_path / "out")


def test_recipes_spell_it(tiny_llama: Path) -> None:
    for spelt, meant in (("FP8", "fp8"), ("fp8", "fp8"), ("none", None), (None, None)):
        assert Recipe.from_flags(str(tiny_llama), kv_cache=spelt).kv_cache == meant
    with pytest.raises(RecipeError, match="kv_cache"):
        Recipe.from_flags(str(tiny_llama), kv_cache="int4")


def test_the_command(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from qdeploy.cli.main import build

    data = ["--samples", "4", "--sequence-length", "32", "--group-size", "32", "--method", "rtn"]
    asked = ["quantize", str(tiny_llama), *data, "--kv-cache", "fp8", "--json", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(build(), asked)
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["kv_cache"]) == 2
    shown = CliRunner().invoke(build(), ["inspect", str(tmp_path / "out")])
    assert "FP8, scales for 2 attentions" in shown.stdout
