"""The engine builder's checkpoints piece by piece: shares, words, config, checks, scripts, the command."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig
from typer.testing import CliRunner

from qdeploy.cli.main import build
from qdeploy.exporters.layers import Layer
from qdeploy.exporters.targets import TARGETS
from qdeploy.exporters.trtllm_legacy import checks, tensors
from qdeploy.exporters.trtllm_legacy.config import check_config, checkpoint_config, quantization, window
from qdeploy.exporters.trtllm_legacy.split import Split
from qdeploy.quantized import QuantizedLinear
from qdeploy.schemes import PRESETS, Scheme
from tests.conftest import save_tiny

INT4 = Scheme("W4A16", 4, 64)
LEAVES = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_layers_are_dealt_once_and_in_order(devices: int, stages: int, each: int) -> None:
    split = Split(devices, stages)
    ranks = list(split.ranks())
    assert len(ranks) == split.devices
    assert [rank.part for rank in ranks] == list(range(devices)) * stages
    dealt = [layer for rank in ranks if rank.part == 0 for layer in rank.layers(each * stages)]
    assert dealt == list(range(each * stages))
    assert [rank.index for rank in ranks if rank.first] == list(range(devices))
    assert [rank.index for rank in ranks if rank.last] == list(range(split.devices - devices, split.devices))


@given(st.integers(1, 8), st.integers(1, 40))
def test_vocabularies_are_padded_with_zeros(devices: int, size: int) -> None:
    matrix = torch.arange(1.0, 1 + 2 * size).reshape(size, 2)
    shares = [rank.share_of_vocabulary(matrix) for rank in Split(devices).ranks()]
    assert {tuple(share.shape) for share in shares} == {(-(-size // devices), 2)}
    assert torch.equal(torch.cat(shares)[:size], matrix)
    assert not torch.cat(shares)[size:].any()


@given(st.sampled_from([(heads, devices) for heads in (1, 2, 4, 8) for devices in (1, 2, 4, 8)]))
def test_heads_are_dealt_or_repeated(case: tuple[int, int]) -> None:
    heads, devices = case
    rows = torch.arange(heads).repeat_interleave(16)
    dealt = [rows[rank.share_of_heads(len(rows), heads)].tolist() for rank in Split(devices).ranks()]
    assert sorted({row for part in dealt for row in part}) == list(range(heads))
    assert {len(part) for part in dealt} == {16 * max(heads // devices, 1)}
    repeats = max(devices // heads, 1)
    assert all(dealt[i] == dealt[i - i % repeats] for i in range(devices))


def pivot(scheme: Scheme, n: int = 64, k: int = 64, **more: Tensor) -> QuantizedLinear:
    """Codes of a formula, and of any scales."""
    rows, columns = torch.meshgrid(torch.arange(n), torch.arange(k), indexing="ij")
    codes = ((7 * rows + 3 * columns + (rows * columns) % 5) % (1 << scheme.bits)).to(torch.uint8)
    scales = (1 + torch.arange(n * scheme.groups(k)).reshape(n, -1)).bfloat16()
    return QuantizedLinear(codes, scales, None, scheme, **more)


def test_the_words_of_four_bits() -> None:
    """The vector was computed with ModelOpt's own packer, and begins F8 3B 7E B1."""
    packed = tensors.pack(pivot(INT4), torch.float16)
    digest = hashlib.sha256(packed["weight"].numpy().tobytes()).hexdigest()
    assert (packed["weight"].dtype, digest[:16]) == (torch.int8, "ace80695e9f71941")
    assert packed["weights_scaling_factor"].dtype == torch.float32
    assert packed["prequant_scaling_factor"].dtype == torch.float16


def test_the_words_of_eight_bits() -> None:
    q = pivot(PRESETS["W8A8_STATIC"], 2, 4, input_scale=torch.tensor(0.5))
    packed = tensors.pack(q, torch.bfloat16)
    assert packed["weight"].tolist() == [[-128, -125, -122, -119], [-121, -117, -113, -109]]
    assert packed["weights_scaling_factor"].tolist() == [1, 2]
    assert packed["activation_scaling_factor"].tolist() == [0.5]
    assert packed["prequant_scaling_factor"].tolist() == [1, 1, 1, 1]


def test_parts_of_a_layer_are_parts_of_its_weight() -> None:
    q = pivot(INT4, 64, 256)
    whole = q.dequantize()
    assert torch.equal(tensors.rows(q, slice(16, 48)).dequantize(), whole[16:48])
    assert torch.equal(tensors.columns(q, slice(64, 192)).dequantize(), whole[:, 64:192])
    by_channel = pivot(PRESETS["W8A8_STATIC"], 64, 256)
    assert torch.equal(
        tensors.columns(by_channel, slice(8, 24)).dequantize(), by_channel.dequantize()[:, 8:24]
    )
    parts = [tensors.rows(q, slice(32, 64)), tensors.rows(q, slice(0, 32))]
    assert torch.equal(tensors.stack(parts).dequantize(), torch.cat([whole[32:], whole[:32]]))


def test_scales_that_would_be_rounded_are_told() -> None:
    q = pivot(INT4)
    assert tensors.loss(q, torch.bfloat16) is None
    finer = QuantizedLinear(q.codes, q.scales.float() + 0.001, None, INT4)
    told = tensors.loss(finer, torch.bfloat16)
    assert told is not None
    assert told.startswith("64 of 64 scales are not exact in bfloat16, the first 1.00")
    coarse = QuantizedLinear(q.codes, torch.full((64, 1), 2.0**-30), None, INT4)
    assert "not exact in float16" in str(tensors.loss(coarse, torch.float16))
    powers = {"divisor": torch.tensor(8.0), "input_scale": torch.tensor(3.0)}
    assert tensors.loss(pivot(PRESETS["NVFP4"], **powers), torch.bfloat16) is None
    powers["input_scale"] = torch.tensor(988.689636)
    told = tensors.loss(pivot(PRESETS["NVFP4"], **powers), torch.bfloat16)
    assert told == "1 of 1 scales are not 1 over a float32, the first 988.689636"
    static = pivot(PRESETS["W8A8_STATIC"], input_scale=torch.tensor(988.689636))
    assert tensors.loss(static, torch.bfloat16) is None


def hf_config(family: str = "llama", **changes: Any) -> dict[str, Any]:
    name = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}[family]
    return dict(AutoConfig.for_model(family, architectures=[name], **changes).to_dict())


def test_the_config_of_a_model() -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = hf_config(
        hidden_size=4096,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=14336,
        vocab_size=128256,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_parameters=rope,
    )
    assert not list(check_config(config, "bfloat16"))
    found = checkpoint_config(config, "bfloat16", Split(4, 2), quantization(INT4, [], True))
    del found["producer"]
    assert found == {
        "architecture": "LlamaForCausalLM",
        "dtype": "bfloat16",
        "logits_dtype": "float32",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_size": 128,
        "hidden_act": "silu",
        "norm_epsilon": 1e-5,
        "max_position_embeddings": 131072,
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": 500000.0,
        "rotary_scaling": {
            "type": "llama3",
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "attn_bias": False,
        "mlp_bias": False,
        "use_parallel_embedding": True,
        "embedding_sharding_dim": 0,
        "mapping": {"world_size": 8, "tp_size": 4, "pp_size": 2},
        "quantization": {
            "quant_algo": "W4A16_AWQ",
            "kv_cache_quant_algo": "FP8",
            "group_size": 64,
            "has_zero_point": False,
            "pre_quant_scale": True,
            "exclude_modules": ["lm_head", "transformer.vocab_embedding", "transformer.ln_f"],
        },
    }


def test_the_config_of_qwen2() -> None:
    found = checkpoint_config(hf_config("qwen2"), "float16", Split(), quantization(None, [], False))
    assert (found["attn_bias"], found["qwen_type"], found["head_size"]) == (True, "qwen2", 128)
    assert found["rotary_scaling"] is None


@pytest.mark.parametrize(
    ("scheme", "size"), [("FP8", None), ("FP8_DYNAMIC", None), ("W8A8_STATIC", None), ("NVFP4", 16)]
)
def test_only_groups_have_a_size(scheme: str, size: int | None) -> None:
    found = quantization(PRESETS[scheme], ["transformer.layers.0.mlp.fc"], False)
    assert found.get("group_size") == size
    assert "pre_quant_scale" not in found
    assert found["exclude_modules"][-1] == "transformer.layers.0.mlp.fc"
    assert found["kv_cache_quant_algo"] is None


@pytest.mark.parametrize(
    ("family", "changes", "back"),
    [
        ("llama", {}, None),
        ("mistral", {"sliding_window": 4096}, 4096),
        ("mistral", {"sliding_window": None}, None),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 4096}, None),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4096}, 4096),
    ],
)
def test_windows_of_attention(family: str, changes: dict[str, Any], back: int | None) -> None:
    assert window(hf_config(family, **changes)) == back


@pytest.mark.parametrize(
    ("changes", "dtype", "told"),
    [
        ({}, "float32", "the model is in float32; checkpoints are written in bfloat16 or float16"),
        ({"hidden_act": "gelu"}, "bfloat16", "its activation is 'gelu', not 'silu'"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
            "bfloat16",
            "its rotary embeddings are 'yarn', not one of default, linear, dynamic, llama3",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "bfloat16",
            "rotates 0.5 of each head, where only whole heads are known",
        ),
    ],
)
def test_models_that_the_builder_computes_otherwise(changes: dict[str, Any], dtype: str, told: str) -> None:
    (finding,) = check_config(hf_config(**changes), dtype)
    assert (finding.severity, finding.problem) == ("error", told)


@pytest.mark.parametrize(
    ("family", "scheme", "listed"),
    [
        ("llama", "NVFP4", True),
        ("mistral", "NVFP4", False),
        ("mistral", "FP8", True),
        ("qwen2", "FP8", False),
    ],
)
def test_precisions_that_are_not_listed(family: str, scheme: str, listed: bool) -> None:
    config = hf_config(family)
    found = [str(finding) for finding in checks.check_precision(config, [PRESETS[scheme], INT4])]
    told = (
        f"TensorRT-LLM's matrix of models and precisions lists no {scheme} for {config['architectures'][0]}"
    )
    assert found == ([] if listed else [f"{told}. Compare the engine's answers with the 16-bit model's"])


def layers(scheme: Scheme | None, blocks: int = 2, **others: Scheme | None) -> list[Layer]:
    """Those of a model, some with another scheme: `others` by block and leaf, as in b1_down_proj."""
    names = [(b, part, leaf) for b in range(blocks) for part, found in LEAVES.items() for leaf in found]
    found = [
        Layer(f"model.layers.{b}.{part}.{leaf}", 128, 128, others.get(f"b{b}_{leaf}", scheme))
        for b, part, leaf in names
    ]
    return [*found, Layer("lm_head", 320, 128, others.get("head"))]


def problems(found: Sequence[Layer], split: Split) -> list[str]:
    return [str(finding) for finding in checks.check_schemes(found, split)]


def test_one_scheme_and_the_same_exceptions_in_every_stage() -> None:
    dynamic = PRESETS["FP8_DYNAMIC"]
    assert problems(layers(None), Split(1, 2)) == []
    assert problems(layers(INT4), Split(1, 2)) == []
    assert problems(layers(INT4, b1_down_proj=None), Split()) == []
    (told,) = problems(layers(INT4, b1_down_proj=None), Split(1, 2))
    assert told.startswith("stages keep different layers in 16 bits, which the config cannot say")
    (told,) = problems(layers(INT4, b1_down_proj=dynamic), Split())
    assert told.startswith(
        "layers have several schemes, and the engine builder is given one: W4A16 symmetric"
    )
    (told,) = problems(layers(INT4, head=INT4), Split())
    assert told.startswith("lm_head: only layers inside blocks are exported quantized")
    (told,) = problems(layers(dynamic, b0_o_proj=None), Split())
    assert "takes all layers of a block or none; transformer.layers.0.attention.dense is in 16 bits" in told


def test_the_builder_pads_each_device_s_part() -> None:
    target = TARGETS["h100"]
    assert not list(checks.check_kernels(layers(INT4), 2, Split(2), target))
    halves = [Layer(f"model.layers.0.mlp.{leaf}", 320, 128, INT4) for leaf in ("gate_proj", "up_proj")]
    (told,) = checks.check_kernels(halves, 2, Split(2), target)
    assert str(told).startswith("model.layers.0.mlp.gate_up_proj: N = 160 of a device's part")
    wide = Scheme("W4A16", 4, 128)
    told = [str(finding) for finding in checks.check_kernels(layers(wide), 2, Split(2), target)]
    assert "model.layers.0.self_attn.qkv_proj: N = 192 of a device's part is no multiple of 128" in told[0]
    assert not list(checks.check_kernels(layers(PRESETS["FP8"]), 2, Split(2), target))


def scripts(tiny_llama: Path, folder: Path, *arguments: str) -> None:
    asked = ["export", str(tiny_llama), "--engine", "tensorrt-llm", "--backend", "tensorrt", "--gpu", "h100"]
    result = CliRunner().invoke(build(), [*asked, "-o", str(folder), *arguments])
    assert result.exit_code == 0, result.output
    assert f"Build its engine on the GPU first: {folder}/build.sh" in result.output


@pytest.mark.parametrize("names", [("--tp-size", "--pp-size"), ("--tensor-parallel-size", "--pp")])
def test_sizes_go_by_the_names_of_either_engine(
    names: tuple[str, str], tiny_llama: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "deploy"
    scripts(tiny_llama, folder, names[0], "1", names[1], "2")
    mapping = json.loads((folder / "config.json").read_text())["mapping"]
    assert mapping == {"world_size": 2, "tp_size": 1, "pp_size": 2}


def test_the_scripts_build_and_serve(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    scripts(tiny_llama, folder, "--pipeline-parallel", "2", "--tensor-parallel", "2")
    for name in ("trtllm-build", "trtllm-serve"):
        (tmp_path / name).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PORT": "9000", "MAX_BATCH_SIZE": "4"}

    def run(script: str, **more: Any) -> list[str]:
        command = [str(folder / script), "--log_level", "info"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, **more)
        return done.stdout.split("\n")[:-1]

    told = run("build.sh")
    assert told[:4] == ["--checkpoint_dir", str(folder), "--output_dir", str(folder / "engine")]
    assert told[4:8] == ["--max_batch_size", "4", "--max_num_tokens", "8192"]
    assert told[8:12] == ["--max_input_len", "256", "--max_seq_len", "256"]
    assert told[12:] == ["--gemm_plugin", "auto", "--workers", "4", "--log_level", "info"]
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run("serve.sh")
    assert caught.value.stderr == f"There is no engine in {folder}/engine. Build it: {folder}/build.sh\n"
    (folder / "engine").mkdir()
    told = run("serve.sh")
    assert told[:4] == ["serve", str(folder / "engine"), "--tokenizer", str(folder / "tokenizer")]
    assert told[4:8] == ["--host", "127.0.0.1", "--port", "9000"]
    assert told[8:14] == ["--backend", "tensorrt", "--tp_size", "2", "--pp_size", "2"]
    assert told[14:] == ["--log_level", "info"]
    assert (folder / "tokenizer" / "tokenizer.json").is_file()
    described = (folder / "tokenizer" / "config.json").read_bytes()
    assert described == (tiny_llama / "config.json").read_bytes()
    report = json.loads((folder / "export.json").read_text())
    assert (report["tensor_parallel"], report["pipeline_parallel"]) == (2, 2)
    for script in ("build.sh", "serve.sh"):
        assert "TensorRT-LLM 1.2.1" in (folder / script).read_text()
        assert "qdeploy has not run this" in (folder / script).read_text()


def test_prompts_are_no_longer_than_a_batch(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "model", "llama", max_position_embeddings=131072)
    scripts(source, tmp_path / "deploy")
    assert "MAX_SEQ_LEN (default 8192)" in (tmp_path / "deploy" / "build.sh").read_text()


@pytest.mark.parametrize(("algorithm", "plugin"), [("NVFP4", "nvfp4"), ("FP8", "auto"), (None, "auto")])
def test_the_plugin_of_an_algorithm(algorithm: str | None, plugin: str) -> None:
    from qdeploy.exporters.trtllm_legacy.launch import build_arguments, serve_arguments

    assert build_arguments(algorithm, Split()) == ["--gemm_plugin", plugin]
    assert build_arguments(algorithm, Split(1, 3)) == ["--gemm_plugin", plugin, "--workers", "3"]
    assert serve_arguments(Split()) == ["--backend", "tensorrt"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--engine", "vllm", "--backend", "tensorrt"], "--engine vllm takes neither --backend nor"),
        (["--pipeline-parallel", "2"], "--engine vllm takes neither --backend nor --pipeline-parallel, only"),
        (
            ["--engine", "tensorrt-llm", "--backend", "triton"],
            "Unknown backend 'triton'. Available: pytorch, tensorrt.",
        ),
        (["--engine", "tensorrt-llm", "--pipeline-parallel", "2"], "give --pp_size 2 to serve.sh"),
        (
            ["--engine", "tensorrt-llm", "--backend", "tensorrt", "--pipeline-parallel", "0"],
            "--pipeline-parallel is 0",
        ),
    ],
)
def test_choices_that_an_engine_has_not(
    tiny_llama: Path, tmp_path: Path, arguments: list[str], told: str
) -> None:
    asked = ["export", str(tiny_llama), "-o", str(tmp_path / "deploy"), "--gpu", "h100", *arguments]
    result = CliRunner().invoke(build(), asked)
    assert result.exit_code != 0
    assert told in str(result.exception)
    assert not (tmp_path / "deploy").exists()


def test_pytorch_is_the_default_backend(tiny_llama: Path, tmp_path: Path) -> None:
    asked = ["export", str(tiny_llama), "--engine", "tensorrt-llm", "--gpu", "h100"]
    for name, more in (("a", []), ("b", ["--backend", "pytorch"])):
        result = CliRunner().invoke(build(), [*asked, "-o", str(tmp_path / name), *more])
        assert result.exit_code == 0, result.output
        assert "Build its engine" not in result.output
    assert {p.name for p in (tmp_path / "a").iterdir()} == {p.name for p in (tmp_path / "b").iterdir()}
