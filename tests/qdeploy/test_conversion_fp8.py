"""FP8 from one format to another, and what the fp8 format has no place for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config

from qdeploy.bench.integrity import check_integrity
from qdeploy.checkpoint.inspection import inspect_checkpoint
from qdeploy.conversion import convert
from qdeploy.errors import CheckpointError, ConversionError, UnknownNameError
from qdeploy.exporters.targets import TARGETS
from qdeploy.exporters.vllm import check
from qdeploy.formats.packed import FORMATS, Packed
from qdeploy.modeling.checkpoint import INDEX, CheckpointReader
from qdeploy.pipeline import quantize
from qdeploy.schemes import PRESETS
from tests.packed import edit_config
from tests.qdeploy.test_conversion import foreign, same, state
from tests.qdeploy.test_pipeline import recipe


@pytest.mark.parametrize("scheme", ["FP8", "FP8_BLOCK"])
@pytest.mark.parametrize("through", [["fp8"], ["modelopt", "fp8"], ["fp8", "modelopt"]])
def test_fp8_goes_from_format_to_format(
    tiny_llama: Path, wide: Path, tmp_path: Path, scheme: str, through: list[str]
) -> None:
    folders = [tmp_path / name for name in ("source", *through, "back")]
    # One scale for a layer takes any shape; blocks of 128 × 128 want whole ones to be quantized to.
    model = tiny_llama if scheme == "FP8" else wide
    quantize(recipe(model, scheme=scheme, method="rtn", group_size=None), folders[0])
    for before, after, target in zip(folders, folders[1:], [*through, "compressed-tensors"], strict=False):
        convert(before, after, target)
        found = Packed(CheckpointReader(after))
        assert found.format is FORMATS[target]
        assert set(found.schemes.values()) == {PRESETS[scheme]}
        assert same(after, folders[0])
        assert not check_integrity(after).changed_layers
    assert not check(folders[-1], TARGETS["h100"])


def test_scales_of_layers_that_run_as_one_stay_apart(tiny_llama: Path, tmp_path: Path) -> None:
    source, prefix = tmp_path / "source", "model.layers.0.self_attn"
    quantize(recipe(tiny_llama, scheme="FP8", method="rtn", group_size=None), source)
    scales = {f"{prefix}.{leaf}_proj": 0.1 + 0.01 * i for i, leaf in enumerate("qkv")}
    for shard in source.glob("*.safetensors"):
        tensors = load_file(shard)
        for module, scale in scales.items():
            if f"{module}.weight_scale" in tensors:  # neither is exact in bfloat16
                tensors[f"{module}.weight_scale"] = torch.tensor([scale])
                tensors[f"{module}.input_scale"] = torch.tensor([2 * scale])
        save_file(tensors, shard, metadata={"format": "pt"})
    convert(source, tmp_path / "there", "fp8")
    convert(tmp_path / "there", tmp_path / "back", "compressed-tensors")
    for folder in ("there", "back"):
        found = Packed(CheckpointReader(tmp_path / folder))
        for module, scale in scales.items():
            q = found.read(module)
            assert set(q.scales.flatten().tolist()) == {torch.tensor(scale).item()}
            assert q.input_scale is not None and q.input_scale.item() == torch.tensor(2 * scale).item()
    assert same(tmp_path / "back", source)


def test_a_layer_without_the_scale_of_its_inputs_is_not_converted(tiny_llama: Path, tmp_path: Path) -> None:
    quantize(recipe(tiny_llama, scheme="FP8", method="rtn", group_size=None), tmp_path / "source")
    there, module = tmp_path / "there", "model.layers.0.mlp.up_proj"
    convert(tmp_path / "source", there, "modelopt")
    for shard in there.glob("*.safetensors"):
        tensors = load_file(shard)
        tensors.pop(f"{module}.input_scale", None)
        save_file(tensors, shard, metadata={"format": "pt"})
    index = json.loads((there / INDEX).read_text())
    del index["weight_map"][f"{module}.input_scale"]
    (there / INDEX).write_text(json.dumps(index))
    told = (
        rf"{module} is FP8 e4m3, per tensor, whose inputs have one scale, and has none\. Stay with modelopt"
    )
    for target in ("fp8", "compressed-tensors"):
        with pytest.raises(ConversionError, match=told):
            convert(there, tmp_path / "out", target)
    assert not list(tmp_path.glob("out*"))


def test_whole_layers_with_inputs_by_token_are_read_as_channels(tiny_llama: Path, tmp_path: Path) -> None:
    quantize(recipe(tiny_llama, scheme="FP8", method="rtn", group_size=None), tmp_path / "source")
    there, back = tmp_path / "there", tmp_path / "back"
    convert(tmp_path / "source", there, "fp8")
    foreign(there, activation_scheme="dynamic")
    convert(there, back, "compressed-tensors")
    assert set(Packed(CheckpointReader(back)).schemes.values()) == {PRESETS["FP8_DYNAMIC"]}
    assert same(back, tmp_path / "source")
    assert "model.layers.0.mlp.up_proj.input_scale" not in CheckpointReader(back)
    assert not check(back, TARGETS["h100"])


def test_what_fp8_s_config_says(wide: Path, tmp_path: Path) -> None:
    quantize(recipe(wide, scheme="FP8_BLOCK", method="rtn", group_size=None), tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "out", "fp8")
    assert CheckpointReader(tmp_path / "out").config["quantization_config"] == {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head"],
    }
    assert inspect_checkpoint(tmp_path / "out").served_by == ["vLLM on CUDA", "TensorRT-LLM", "transformers"]


def test_transformers_reads_the_same_weights_in_blocks(wide: Path, tmp_path: Path) -> None:
    quantize(recipe(wide, scheme="FP8_BLOCK", method="rtn", group_size=None), tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "fp8", "fp8")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "fp8",
        dtype=torch.float32,
        quantization_config=FineGrainedFP8Config(dequantize=True),
    ).state_dict()
    ours = state(tmp_path / "fp8")
    assert all(torch.equal(theirs[name], tensor.float()) for name, tensor in ours.items())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"activation_scheme": "static"}, r"activation_scheme 'static' with weight_block_size \[128, 128\]"),
        ({"activation_scheme": "none"}, "is damaged: activation_scheme 'none'"),
        ({"weight_block_size": [1, 32]}, r"fp8 in blocks of \[1, 32\] cannot be read, only of \[128, 128\]"),
        ({"weight_block_size": None}, r"_proj\.weight is E4M3, and there is no .*_proj\.weight_scale, which"),
    ],
)
def test_fp8_that_is_not_read(wide: Path, tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    quantize(recipe(wide, scheme="FP8_BLOCK", method="rtn", group_size=None), tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "there", "fp8")
    foreign(tmp_path / "there", **changes)
    with pytest.raises(CheckpointError, match=told):
        Packed(CheckpointReader(tmp_path / "there"))


def test_a_cache_in_fp8_does_not_go_into_fp8_folders(wide: Path, tmp_path: Path) -> None:
    asked = recipe(wide, scheme="FP8_BLOCK", method="rtn", group_size=None, kv_cache="fp8")
    quantize(asked, tmp_path / "source")
    with pytest.raises(ConversionError, match="cache in FP8, which the config of fp8 cannot say"):
        convert(tmp_path / "source", tmp_path / "out", "fp8")


def test_fbgemm_is_read_and_becomes_other_formats(tiny_llama: Path, tmp_path: Path) -> None:
    source, there = tmp_path / "source", tmp_path / "there"
    quantize(recipe(tiny_llama, scheme="FP8_DYNAMIC", method="rtn", group_size=None), source)
    block = {
        "quant_method": "fbgemm_fp8",
        "activation_scale_ub": 1200.0,
        "modules_to_not_convert": ["lm_head"],
    }
    shutil.copytree(source, there)
    edit_config(there / "config.json", there / "config.json", quantization_config=block)
    found = inspect_checkpoint(there)
    assert found.format == "fbgemm_fp8"
    assert [use.scheme for use in found.schemes] == ["FP8_DYNAMIC e4m3, per channel"]
    assert same(there, source)
    for target in ("compressed-tensors", "modelopt"):
        convert(there, tmp_path / target, target)
        assert same(tmp_path / target, source)
    with pytest.raises(
        ConversionError, match=r"no FP8_DYNAMIC e4m3, per channel\. --to compressed-tensors or"
    ):
        convert(there, tmp_path / "fp8", "fp8")
    with pytest.raises(UnknownNameError, match="fbgemm_fp8"):
        convert(source, tmp_path / "out", "fbgemm_fp8")
