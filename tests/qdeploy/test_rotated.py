"""A checkpoint in another basis computes the same, and is quantized as if it were on the disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM

from qdeploy.checkpoint.manifest import load_manifest
from qdeploy.errors import QuantizationError
from qdeploy.estimate import estimate
from qdeploy.exporters.vllm import VllmExporter
from qdeploy.files import read_json
from qdeploy.formats.dequantize import dequantized_model
from qdeploy.memory import Budget
from qdeploy.methods.rotation import Rotation
from qdeploy.modeling.blocks import find_blocks
from qdeploy.modeling.checkpoint import SINGLE, CheckpointReader
from qdeploy.modeling.experts import split_experts
from qdeploy.modeling.skeleton import build_skeleton
from qdeploy.pipeline import open_model, quantize
from qdeploy.recipe import Recipe
from qdeploy.rehearsal import rehearse
from qdeploy.rotated import rotated
from tests.conftest import EXPERT_FAMILIES, FAMILIES, save_tiny
from tests.qdeploy.test_folding import with_outliers
from tests.qdeploy.test_pipeline import all_tensors, recipe
from tests.resuming import whole_and_resumed

TURNED = [family for family in FAMILIES if family != "gemma3_text"]
TOKENS = torch.arange(20)[None]


def turned(folder: Path, **knobs: Any) -> CheckpointReader:
    reader = CheckpointReader(folder)
    model = build_skeleton(reader)
    return rotated(reader, model, find_blocks(model), Rotation(**knobs))


def tensors_of(reader: CheckpointReader) -> dict[str, Tensor]:
    return {name: reader.get(name) for name in reader.names}


def in_float64(folder: Path, source: Path) -> Path:
    """The model with all its weights stored in float64."""
    shutil.copytree(source, folder)
    tensors = {name: tensor.double() for name, tensor in load_file(source / SINGLE).items()}
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    return folder


def written(folder: Path, reader: CheckpointReader) -> Path:
    """What `reader` reads, as a checkpoint on the disk."""
    shutil.copytree(reader.folder, folder)
    tensors = {name: tensor.contiguous() for name, tensor in tensors_of(reader).items()}
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(reader.config))
    return folder


class InFloat64(TorchFunctionMode):
    """transformers' norms, softmax and rotary embeddings compute in float32 on their own account."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def wider(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        named = {name: wider(value) for name, value in (kwargs or {}).items()}
        return func(*map(wider, args), **named) if func is not torch.Tensor.float else args[0].double()


def logits(folder: Path) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    split_experts(model)  # torch multiplies fused ones in no more than float32
    with torch.no_grad(), InFloat64():
        found: Tensor = model(TOKENS).logits
    return found


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        *((family, {"tie_word_embeddings": tied}) for family in TURNED for tied in (False, True)),
        *((family, {}) for family in EXPERT_FAMILIES),
        ("gemma", {"head_dim": 16}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"num_key_value_heads": 1}),
        ("llama", {"num_key_value_heads": 4, "head_dim": 24}),
        ("llama", {"hidden_size": 72, "num_attention_heads": 6}),
        ("llama", {"hidden_size": 36, "head_dim": 10}),
        ("granite", {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0}),
    ],
    ids=str,
)
def test_logits_stay_what_they_are(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    source = in_float64(tmp_path / "float64", save_tiny(tmp_path / "model", family, **changes))
    reader = turned(source)
    expected, found = logits(source), logits(written(tmp_path / "turned", reader))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    before = all_tensors(source)
    for name, tensor in tensors_of(reader).items():
        if tensor.dim() == 2 and name in before:
            assert (tensor - before[name]).norm() > 0.5 * tensor.norm(), name


@pytest.mark.parametrize(
    ("family", "changes"),
    [("gemma2", {"head_dim": 16}), ("gemma3_text", {}), ("olmo2", {}), ("glm4", {"head_dim": 16})],
)
def test_norms_behind_writers_are_refused(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    source = save_tiny(tmp_path / "model", family, **changes)
    with pytest.raises(QuantizationError, match=r"model\.layers\.0 computes something else .*\(relative"):
        quantize(recipe(source, method="rotation+rtn"), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_norms_that_take_off_a_mean_are_refused(tmp_path: Path) -> None:
    for family in ("cohere", "olmo", "starcoder2"):
        with pytest.raises(QuantizationError, match="around"):
            turned(save_tiny(tmp_path / family, family))


def test_only_the_checkpoint_s_tensors_change_and_each_is_rounded_once(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    source = tiny_model("qwen2")
    reader, exact = turned(source), turned(in_float64(tmp_path / "float64", source))
    assert set(reader.names) == set(CheckpointReader(source).names) | {"lm_head.weight"}
    for name in reader.names:
        assert reader.shape(name) == reader.get(name).shape
        assert reader.dtype(name) == reader.get(name).dtype == torch.bfloat16
        assert torch.equal(reader.get(name), exact.get(name).bfloat16()), name
        if name.endswith("norm.weight"):
            assert reader.get(name).eq(1).all()
    assert reader.config["tie_word_embeddings"] is False
    assert reader.sha256 == CheckpointReader(source).sha256
    assert reader.stored.names == CheckpointReader(source).names
    biases = [name for name in reader.names if name.endswith((".q_proj.bias", ".k_proj.bias"))]
    assert len(biases) == 4
    assert all(torch.equal(reader.get(name), reader.stored.get(name)) for name in biases)


def test_the_seed_decides_and_nothing_else(tiny_llama: Path) -> None:
    first, again, other = (tensors_of(turned(tiny_llama, seed=seed)) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert {name for name in first if torch.equal(first[name], other[name])} == {
        name for name in first if name.endswith("norm.weight")
    }


def test_r2_turns_value_heads_and_what_reads_them_differently_in_each_block(tiny_llama: Path) -> None:
    both, r1 = tensors_of(turned(tiny_llama)), tensors_of(turned(tiny_llama, r2=False))
    different = {name for name in both if not torch.equal(both[name], r1[name])}
    names = [f"model.layers.{i}.self_attn.{leaf}_proj.weight" for i in range(2) for leaf in "vo"]
    assert different == set(names)
    # v ← Rᵀ·v, so that R comes back from the two; it is the same for all heads of a block.
    turns = []
    for name in names[::2]:
        heads = zip(r1[name].float().split(16), both[name].float().split(16), strict=True)
        first, second = (torch.linalg.lstsq(a.T, b.T).solution for a, b in heads)
        torch.testing.assert_close(first, second, rtol=0, atol=0.05)
        turns.append(first)
    assert (turns[0] - turns[1]).abs().max() > 0.2


def test_outliers_are_spread(tiny_llama: Path, tmp_path: Path) -> None:
    reader = turned(with_outliers(tmp_path / "model", tiny_llama))
    block, layer = "model.layers.0", "model.layers.0.mlp.gate_proj.weight"
    gain = reader.stored.get(f"{block}.post_attention_layernorm.weight")
    before, after = (w.float().norm(dim=0) for w in (reader.stored.get(layer) * gain, reader.get(layer)))
    assert before.max() > 10 * before.median()
    assert after.max() < 2 * after.median()


@pytest.mark.parametrize(
    ("family", "method", "scheme"),
    [
        ("llama", "rtn", "W4A16"),
        ("qwen2", "gptq", "W4A16"),
        ("llama", "smoothquant+gptq", "W8A8"),
        ("qwen2_moe", "gptq", "W4A16"),
    ],
)
def test_one_pass_equals_quantizing_the_turned_checkpoint(
    tiny_model: Callable[[str], Path], tmp_path: Path, family: str, method: str, scheme: str
) -> None:
    source, flags = tiny_model(family), {"scheme": scheme, "group_size": None if scheme == "W8A8" else "32"}
    manifest = quantize(recipe(source, method=f"rotation+{method}", **flags), tmp_path / "out")
    quantize(recipe(written(tmp_path / "turned", turned(source)), method=method, **flags), tmp_path / "plain")
    found, expected = all_tensors(tmp_path / "out"), all_tensors(tmp_path / "plain")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
    configs = [read_json(tmp_path / folder / "config.json") for folder in ("out", "plain")]
    assert configs[0] == configs[1]

    assert {module["method"] for module in manifest["modules"]} == {f"rotation+{method}"}
    assert manifest["model"]["sha256"] == CheckpointReader(source).sha256
    assert manifest["model"]["parameters"] == sum(tensor.numel() for tensor in all_tensors(source).values())
    assert load_manifest(tmp_path / "out") is not None


def test_eight_bits_of_the_turned_model_keep_the_logits(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    for family in ("qwen2", "phi3"):
        source, out = tiny_model(family), tmp_path / family
        quantize(recipe(source, scheme="W8A16", method="rotation+gptq"), out)
        with torch.no_grad():
            found = dequantized_model(out, torch.float64)(TOKENS).logits
        expected = logits(source)
        assert 0 < (found - expected).norm() / expected.norm() < 0.05


def test_a_run_that_resumes_ends_in_the_same_bytes(tiny_llama: Path, tmp_path: Path) -> None:
    asked = recipe(tiny_llama, method="rotation+smoothquant+gptq", scheme="W8A8", group_size=None)
    whole, resumed = whole_and_resumed(asked, tmp_path)
    assert resumed == whole
    quantize(asked, tmp_path / "resumed")  # finished: nothing is done


def test_layers_left_in_16_bit_are_turned_too(tiny_llama: Path, tmp_path: Path) -> None:
    only = {"match": "re:.*down_proj", "scheme": "W8A8", "stages": [{"rotation": {"seed": 5}}, "rtn"]}
    asked = {"model": str(tiny_llama), "rules": [only]}
    quantize(Recipe.model_validate(asked), tmp_path / "out")
    expected, found = tensors_of(turned(tiny_llama, seed=5)), all_tensors(tmp_path / "out")
    kept = [name for name in expected if "down_proj" not in name]
    assert all(torch.equal(found[name], expected[name]) for name in kept)


def test_vllm_loads_the_folder_with_a_head_of_its_own(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    quantize(recipe(tiny_model("qwen2"), method="rotation+rtn"), tmp_path / "out")
    report = VllmExporter().export(tmp_path / "out", tmp_path / "deploy", gpu="cpu-avx512")
    assert report.quantized_layers == 14
    config = read_json(tmp_path / "deploy" / "config.json")
    assert config["tie_word_embeddings"] is False
    assert config["quantization_config"]["ignore"] == ["lm_head"]


def test_the_estimate_counts_the_head_and_what_is_made(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    asked, limits = recipe(tiny_model("qwen2"), method="rotation+rtn"), Budget(10**9)
    quantize(asked, tmp_path / "out")
    found = estimate(asked, *open_model(asked), limits)
    size = read_json(tmp_path / "out" / "model.safetensors.index.json")["metadata"]["total_size"]
    plain = recipe(tiny_model("qwen2"), method="rtn")
    without = estimate(plain, *open_model(plain), limits)
    head = 320 * 64 * 2
    assert found.output - without.output == head
    assert found.output >= size
    assert found.rest == 2 * head + 64 * 2  # embeddings, head, norm
    assert without.rest == 0


def test_a_rehearsal_runs_the_turned_model(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    outlook = rehearse(recipe(tiny_model("qwen2"), method="rotation+gptq"), tmp_path / "out", Budget(10**9))
    assert outlook.timing is not None
    assert {planned.method for planned in outlook.plan.values()} == {"rotation+gptq"}
    assert outlook.needed.rest > 0


def test_r2_is_left_out_where_value_heads_come_from_a_latent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 12,
        "num_key_value_heads": 4,
    }
    source = save_tiny(tmp_path / "model", "deepseek_v3", **sizes, v_head_dim=16, first_k_dense_replace=2)
    exact = in_float64(tmp_path / "float64", source)
    reader = turned(exact)
    assert "R2 is left out" in capsys.readouterr().err
    expected, found = logits(exact), logits(written(tmp_path / "turned", reader))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
