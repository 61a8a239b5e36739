from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qdeploy.exporters import checks
from qdeploy.exporters.base import Finding
from qdeploy.exporters.layers import Layer, read_layers
from qdeploy.exporters.targets import TARGETS
from qdeploy.exporters.vllm import check
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.schemes import Scheme
from tests.packed import W4A16, W4A16_ASYM, W8A8, W8A16, edit_config, edit_tensors

MODULE = "model.layers.0.self_attn.q_proj"


def errors(findings: Iterable[Finding]) -> list[tuple[str | None, str]]:
    return [(finding.module, finding.problem) for finding in findings if finding.severity == "error"]


def only(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    return finding


@pytest.mark.parametrize("scheme", [W4A16, W4A16_ASYM, W8A16, W8A8], ids=lambda scheme: scheme.name)
def test_a_sound_checkpoint_passes_every_check(pack_tiny: Callable[..., Path], scheme: Scheme) -> None:
    assert not errors(check(pack_tiny(scheme), TARGETS["a100"]))


def test_a_16_bit_model_passes(tiny_family: Path) -> None:
    assert not errors(check(tiny_family, TARGETS["cpu-avx512"]))


def test_missing_tokenizer(packed: Path) -> None:
    (packed / "tokenizer.json").unlink()
    assert "tokenizer" in only(checks.check_files(CheckpointReader(packed))).problem


@pytest.mark.parametrize(
    ("suffix", "change", "told"),
    [
        ("weight_packed", lambda t: t.to(torch.int64), "int64, not int32"),
        ("weight_packed", lambda t: t[:, :-1], "[64, 7], not [64, 8]"),
        ("weight_scale", lambda t: t.T, "[2, 64], not [64, 2]"),
        ("weight_scale", lambda t: None, "weight_scale is missing"),
        ("weight_shape", lambda t: None, "weight_shape is missing"),
    ],
)
def test_wrong_tensors(
    packed: Path, suffix: str, change: Callable[[Tensor], Tensor | None], told: str
) -> None:
    name = f"{MODULE}.{suffix}"
    edit_tensors(packed, {name: change(CheckpointReader(packed).get(name))})
    reader = CheckpointReader(packed)
    finding = only(checks.check_tensors(reader, read_layers(reader)))
    assert finding.module == MODULE
    assert told in finding.problem


def test_a_weight_beside_the_packed_one_does_not_belong(packed: Path) -> None:
    edit_tensors(packed, {f"{MODULE}.weight": torch.zeros(64, 64, dtype=torch.bfloat16)})
    reader = CheckpointReader(packed)
    assert "weight does not belong" in only(checks.check_tensors(reader, read_layers(reader))).problem


def test_zero_points_that_the_scheme_does_not_have(packed: Path) -> None:
    edit_tensors(packed, {f"{MODULE}.weight_zero_point": torch.zeros(8, 2, dtype=torch.int32)})
    reader = CheckpointReader(packed)
    assert "zero_point" in only(checks.check_tensors(reader, read_layers(reader))).problem


def test_weight_shape_of_another_layer(packed: Path) -> None:
    edit_tensors(packed, {f"{MODULE}.weight_shape": torch.tensor([64, 128])})
    reader = CheckpointReader(packed)
    assert "[64, 128], not [64, 64]" in only(checks.check_shapes(reader, read_layers(reader))).problem


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_scales_must_be_finite_and_positive(packed: Path, value: float) -> None:
    name = f"{MODULE}.weight_scale"
    scales = CheckpointReader(packed).get(name).clone()
    scales[3, 1] = value
    edit_tensors(packed, {name: scales})
    reader = CheckpointReader(packed)
    assert "1 of 128 scales" in only(checks.check_scales(reader, read_layers(reader))).problem


def test_a_group_size_that_does_not_divide() -> None:
    found = only(checks.check_groups([Layer("down_proj", 64, 100, W4A16), Layer("o_proj", 64, 64, W4A16)]))
    assert found.module == "down_proj"
    assert "32 does not divide K = 100" in found.problem


def test_fused_layers_share_one_scheme() -> None:
    members = [Layer(f"l.0.{leaf}", 64, 64, W4A16) for leaf in ("q_proj", "k_proj", "v_proj")]
    assert not list(checks.check_fused(members))
    for scheme in (None, W4A16_ASYM):
        found = only(checks.check_fused([*members[:2], Layer("l.0.v_proj", 64, 64, scheme)]))
        assert found.module == "l.0.qkv_proj"


def test_config_of_a_sound_checkpoint(packed: Path) -> None:
    reader = CheckpointReader(packed)
    assert not list(checks.check_config(reader.config, read_layers(reader)))


def test_a_16_bit_layer_must_be_ignored(packed: Path) -> None:
    reader = CheckpointReader(packed)
    reader.config["quantization_config"]["ignore"] = []
    assert only(checks.check_config(reader.config, read_layers(reader))).module == "lm_head"


def test_a_quantized_layer_must_not_be_ignored(packed: Path) -> None:
    reader = CheckpointReader(packed)
    reader.config["quantization_config"]["ignore"] = ["lm_head", "re:.*layers.0.self_attn.q_proj"]
    assert only(checks.check_config(reader.config, read_layers(reader))).module == MODULE


def test_an_ignored_name_that_does_not_exist_is_a_warning(packed: Path) -> None:
    reader = CheckpointReader(packed)
    reader.config["quantization_config"]["ignore"].append("model.layers.9.mlp.up_proj")
    assert only(checks.check_config(reader.config, read_layers(reader))).severity == "warning"


def test_the_format_must_be_the_one_of_the_tensors(packed: Path) -> None:
    reader = CheckpointReader(packed)
    layers = read_layers(reader)
    block = reader.config["quantization_config"]
    block["format"] = block["config_groups"]["group_0"]["format"] = "int-quantized"
    assert "int-quantized" in only(checks.check_config(reader.config, layers)).problem


def test_a_quantization_config_without_quantized_layers(
    packed: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    for file in tiny_llama.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    block = CheckpointReader(packed).config["quantization_config"]
    edit_config(tiny_llama / "config.json", folder / "config.json", quantization_config=block)
    assert any("no linear layer" in problem for _, problem in errors(check(folder, TARGETS["cpu-avx512"])))
