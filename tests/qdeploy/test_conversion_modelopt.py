"""To ModelOpt's format and back: every algorithm, both JSON files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qdeploy.bench.integrity import check_integrity
from qdeploy.conversion import convert
from qdeploy.errors import CheckpointError
from qdeploy.formats.packed import Packed
from qdeploy.kv_cache import stored_scales
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.pipeline import quantize
from qdeploy.recipe import Recipe
from qdeploy.schemes import PRESETS
from tests.packed import edit_config, quantize_folder
from tests.qdeploy.test_conversion import SYMMETRIC, same, state
from tests.qdeploy.test_pipeline import recipe


@pytest.mark.parametrize(
    "scheme", ["FP8", "FP8_DYNAMIC", "FP8_BLOCK", "MXFP8", "MXFP4", "NVFP4", "NVFP4A16", "W8A8_STATIC"]
)
def test_number_formats_go_to_modelopt_and_back(wide: Path, tmp_path: Path, scheme: str) -> None:
    source, there, back = (tmp_path / name for name in ("source", "there", "back"))
    quantize(recipe(wide, scheme=scheme, method="rtn", group_size=None, kv_cache="fp8"), source)
    rounds = scheme.startswith("NVFP4")  # divisors are stored as 1 over them
    convert(source, there, "modelopt", round_scales=rounds)
    convert(there, back, "compressed-tensors", round_scales=rounds)
    assert set(Packed(CheckpointReader(there)).schemes.values()) == {PRESETS[scheme]}
    assert stored_scales(CheckpointReader(back)).keys() == stored_scales(CheckpointReader(source)).keys()
    before, after = state(source), state(back)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-6 if rounds else 0, atol=0)
    assert rounds or not check_integrity(there).changed_layers


def test_modelopt_s_files_say_what_tensorrt_llm_asks(wide: Path, tmp_path: Path) -> None:
    quantize(recipe(wide, method="rtn", kv_cache="fp8"), tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "out", "modelopt")
    file = json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())
    assert file["producer"]["name"] == "modelopt"
    assert file["quantization"] == {
        "quant_algo": "W4A16_AWQ",
        "group_size": 32,
        "has_zero_point": False,
        "pre_quant_scale": True,
        "kv_cache_quant_algo": "FP8",
        "exclude_modules": ["lm_head"],
    }
    reader = CheckpointReader(tmp_path / "out")
    assert reader.config["quantization_config"]["group_size"] == 32
    alone = [name.removesuffix(".pre_quant_scale") for name in reader.names if "pre_quant_scale" in name]
    assert len(alone) == 4
    assert all(name.endswith(("o_proj", "down_proj")) for name in alone)
    scale = reader.get("model.layers.0.self_attn.k_proj.k_scale")
    assert (scale.dtype, scale.shape) == (torch.float32, ())
    assert "model.layers.0.self_attn.q_scale" not in reader.names


def test_modelopt_holds_several_schemes(wide: Path, tmp_path: Path) -> None:
    rules = [
        {"match": "re:.*down_proj", "scheme": "FP8_DYNAMIC", "stages": ["rtn"]},
        {"match": "re:.*(gate|up)_proj", "scheme": "MXFP4", "stages": ["rtn"]},
        {"match": "re:.*o_proj", "scheme": {"bits": 4, "group": 64}, "stages": ["rtn"]},
        {"match": "Linear", "scheme": {"bits": 4, "group": 32}, "stages": ["rtn"]},
    ]
    quantize(Recipe.model_validate({"model": str(wide), "rules": rules}), tmp_path / "source")
    there = tmp_path / "there"
    convert(tmp_path / "source", there, "modelopt")
    found = json.loads((there / "hf_quant_config.json").read_text())["quantization"]
    block = json.loads((there / "config.json").read_text())["quantization_config"]
    assert found["quant_algo"] == block["quant_algo"] == "MIXED_PRECISION"
    assert found["quantized_layers"] == block["quantized_layers"]
    layers = {name.removeprefix("model.layers.0."): each for name, each in found["quantized_layers"].items()}
    assert layers["mlp.down_proj"] == {"quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}
    assert layers["mlp.up_proj"] == {"quant_algo": "mxfp4"}
    int4 = {"quant_algo": "W4A16_AWQ", "has_zero_point": False, "pre_quant_scale": True}
    assert layers["self_attn.o_proj"] == int4 | {"group_size": 64}
    assert layers["self_attn.q_proj"] == int4 | {"group_size": 32}
    groups = {group["targets"][0]: group for group in block["config_groups"].values()}
    targets = [module for group in groups.values() for module in group["targets"]]
    assert sorted(targets) == sorted(found["quantized_layers"])
    four = {"dynamic": False, "num_bits": 4, "type": "int", "group_size": 64}
    assert groups["model.layers.0.self_attn.o_proj"]["weights"] == four
    eight = {"dynamic": False, "num_bits": 8, "type": "float"}
    assert groups["model.layers.0.mlp.down_proj"]["weights"] == eight | {"strategy": "channel"}
    assert groups["model.layers.0.mlp.down_proj"]["input_activations"] == eight
    schemes = Packed(CheckpointReader(tmp_path / "source")).schemes
    for kept in ("both", "the file"):
        assert Packed(CheckpointReader(there)).schemes == schemes
        convert(there, tmp_path / f"back from {kept}", "compressed-tensors")
        assert same(tmp_path / f"back from {kept}", tmp_path / "source")
        edit_config(there / "config.json", there / "config.json", quantization_config=None)


def test_modelopt_folders_without_a_block_are_read_by_their_file(wide: Path, tmp_path: Path) -> None:
    quantize(recipe(wide, method="rtn"), tmp_path / "source")
    there = tmp_path / "there"
    convert(tmp_path / "source", there, "modelopt")
    edit_config(there / "config.json", there / "config.json", quantization_config=None)
    convert(there, tmp_path / "back", "compressed-tensors")
    assert same(tmp_path / "back", tmp_path / "source")


def test_a_cache_is_known_by_modelopt_s_file_alone(wide: Path, tmp_path: Path) -> None:
    quantize(recipe(wide, method="rtn", kv_cache="fp8"), tmp_path / "source")
    there = tmp_path / "there"
    convert(tmp_path / "source", there, "modelopt")
    edit_config(there / "config.json", there / "config.json", quantization_config=None)
    convert(there, tmp_path / "back", "compressed-tensors")
    assert stored_scales(CheckpointReader(tmp_path / "back")).keys() == {
        "model.layers.0.self_attn",
        "model.layers.1.self_attn",
    }
    file = there / "hf_quant_config.json"
    file.write_text(file.read_text().replace('"kv_cache_quant_algo": "FP8"', '"kv_cache_quant_algo": "INT8"'))
    with pytest.raises(CheckpointError, match="quantized as INT8; only FP8"):
        convert(there, tmp_path / "other", "compressed-tensors")


def test_inputs_that_modelopt_scales_first_are_not_passed_over(tiny_llama: Path, tmp_path: Path) -> None:
    there, name = tmp_path / "there", "model.layers.0.mlp.down_proj.pre_quant_scale"
    quantize_folder(tiny_llama, tmp_path / "packed", SYMMETRIC)
    convert(tmp_path / "packed", there, "modelopt")
    (shard,) = there.glob("*.safetensors")
    tensors = load_file(shard)
    tensors[name][3] = 0.5
    save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"down_proj .* pre_quant_scale \(from 0\.5 to 1\)"):
        convert(there, tmp_path / "back", "compressed-tensors")
