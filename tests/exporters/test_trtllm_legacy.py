"""Checkpoints for TensorRT-LLM's engine builder: what they stand for, their names, what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qdeploy.checkpoint.manifest import load_manifest
from qdeploy.conversion import convert
from qdeploy.errors import ExportError, OutputError, UsageError
from qdeploy.exporters.base import ExportReport
from qdeploy.exporters.reference import write_dequantized
from qdeploy.exporters.trtllm_legacy.exporter import EngineBuilderExporter
from qdeploy.files import sha256_file
from qdeploy.formats.dequantize import dequantized_state
from qdeploy.formats.packed import Packed
from qdeploy.kv_cache import stored_scales
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.pipeline import quantize
from qdeploy.recipe import Recipe
from qdeploy.schemes import PRESETS, Scheme, preset
from tests.conftest import save_tiny
from tests.exporters.legacy_reader import read_legacy
from tests.packed import edit_config
from tests.qdeploy.test_pipeline import recipe

SHAPES: dict[str, Any] = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512, "vocab_size": 321}
"""Groups of 64 on four devices; two key/value heads, fewer than those; a vocabulary that is odd."""

ALGORITHMS = {
    "W4A16": ("W4A16_AWQ", "h100"),
    "W8A8_STATIC": ("W8A8_SQ_PER_CHANNEL", "a100"),
    "FP8": ("FP8", "l40s"),
    "FP8_DYNAMIC": ("FP8_PER_CHANNEL_PER_TOKEN", "h100"),
    "NVFP4": ("NVFP4", "b200"),
}


def export(
    source: Path, output: Path, gpu: str = "h100", stages: int = 1, devices: int = 1, **more: Any
) -> ExportReport:
    return EngineBuilderExporter(stages).export(source, output, gpu=gpu, tensor_parallel=devices, **more)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), "llama", **SHAPES)


@pytest.fixture(scope="module")
def quantized(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A folder of a scheme, made once; never write into it."""
    made: dict[str, Path] = {}

    def make(scheme: str, group: str | None = None, **more: Any) -> Path:
        key = f"{scheme} {group} {sorted(more.items())}"
        if key not in made:
            folder = tmp_path_factory.mktemp("quantized")
            size = group or ("64" if scheme.startswith("W4A16") else None)
            quantize(recipe(model, scheme=scheme, method="rtn", group_size=size, **more), folder / "packed")
            made[key] = folder / "packed"
            if scheme == "NVFP4":  # its divisors are seldom 1 over a float32
                convert(made[key], folder / "rounded", "modelopt", round_scales=True)
                made[key] = folder / "rounded"
        return made[key]

    return make


def copied(source: Path, folder: Path) -> Path:
    """A copy that may be written to."""
    return Path(shutil.copytree(source, folder))


def assert_same(found: dict[str, Tensor], folder: Path) -> None:
    """To the last bit, and nothing is missing."""
    expected = dict(dequantized_state(folder))
    expected.setdefault("lm_head.weight", expected["model.embed_tokens.weight"])
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("scheme", ALGORITHMS)
def test_the_ranks_together_are_the_model(
    quantized: Callable[..., Path], tmp_path: Path, scheme: str, devices: int, stages: int
) -> None:
    source, (algorithm, gpu) = quantized(scheme), ALGORITHMS[scheme]
    report = export(source, tmp_path / "deploy", gpu, stages, devices)
    assert report.kernels == {algorithm: 14}
    assert (report.tensor_parallel, report.pipeline_parallel) == (devices, stages)
    config = json.loads((tmp_path / "deploy" / "config.json").read_text())
    assert config["quantization"]["quant_algo"] == algorithm
    assert_same(read_legacy(tmp_path / "deploy"), source)


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"num_key_value_heads": 1}),
        ("llama", {"num_key_value_heads": 4, "tie_word_embeddings": True, "vocab_size": 323}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("mistral", {"head_dim": 32}),
        ("qwen2", {"vocab_size": 325}),
    ],
)
def test_sixteen_bits_of_every_architecture(
    tmp_path: Path, family: str, changes: dict[str, Any], devices: int, stages: int
) -> None:
    source = save_tiny(tmp_path / "model", family, **changes)
    report = export(source, tmp_path / "deploy", "a100", stages, devices)
    assert (report.scheme, report.kernels) == ("16-bit", {})
    assert_same(read_legacy(tmp_path / "deploy"), source)
    config = json.loads((tmp_path / "deploy" / "config.json").read_text())
    assert config["quantization"] == {"quant_algo": None, "kv_cache_quant_algo": None}
    assert config["attn_bias"] is (family == "qwen2" or "attention_bias" in changes)


def test_names_and_shapes(quantized: Callable[..., Path], tmp_path: Path) -> None:
    export(quantized("W4A16", kv_cache="fp8"), tmp_path / "deploy", stages=2, devices=2)
    linears = {
        "attention.qkv": (256, 256),  # 128 rows of queries, 64 of keys, 64 of values
        "attention.dense": (256, 128),
        "mlp.fc": (256, 256),
        "mlp.gate": (256, 256),
        "mlp.proj": (256, 256),
    }
    expected = {
        "transformer.layers.0.input_layernorm.weight": (torch.bfloat16, (256,)),
        "transformer.layers.0.post_layernorm.weight": (torch.bfloat16, (256,)),
        "transformer.layers.0.attention.kv_cache_scaling_factor": (torch.float32, (1,)),
    }
    for name, (n, k) in linears.items():
        prefix = f"transformer.layers.0.{name}"
        expected |= {
            f"{prefix}.weight": (torch.int8, (n // 2, k)),
            f"{prefix}.weights_scaling_factor": (torch.float32, (n, k // 64)),
            f"{prefix}.prequant_scaling_factor": (torch.bfloat16, (k,)),
        }
    first = {"transformer.vocab_embedding.weight": (torch.bfloat16, (161, 256))}
    last = {
        "transformer.ln_f.weight": (torch.bfloat16, (256,)),
        "lm_head.weight": (torch.bfloat16, (161, 256)),
    }
    for rank, more in enumerate([first, first, last, last]):
        tensors = load_file(tmp_path / "deploy" / f"rank{rank}.safetensors")
        assert {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()} == expected | more


def test_keys_and_values_have_the_larger_of_their_scales(
    quantized: Callable[..., Path], tmp_path: Path
) -> None:
    source = quantized("FP8", kv_cache="fp8")
    report = export(source, tmp_path / "deploy")
    found = load_file(tmp_path / "deploy" / "rank0.safetensors")
    for layer in range(2):
        scales = stored_scales(CheckpointReader(source))[f"model.layers.{layer}.self_attn"]
        largest = max(float(scales["k_scale"]), float(scales["v_scale"]))
        assert found[f"transformer.layers.{layer}.attention.kv_cache_scaling_factor"].tolist() == [largest]
    config = json.loads((tmp_path / "deploy" / "config.json").read_text())
    assert config["quantization"]["kv_cache_quant_algo"] == "FP8"
    told = [finding.problem for finding in report.findings]
    assert told == [
        "keys and values get one scale, the larger of the two",
        "follows trtllm-build's loader by its source; this project has not run it",
    ]


def test_static_scales_of_inputs(quantized: Callable[..., Path], tmp_path: Path) -> None:
    source = quantized("W8A8_STATIC")
    export(source, tmp_path / "deploy", devices=2)
    packed = Packed(CheckpointReader(source))
    for rank in range(2):
        found = load_file(tmp_path / "deploy" / f"rank{rank}.safetensors")
        for ours, theirs in (("attention.qkv", "self_attn.v_proj"), ("mlp.proj", "mlp.down_proj")):
            scale = packed.read(f"model.layers.1.{theirs}").input_scale
            assert scale is not None
            stored = found[f"transformer.layers.1.{ours}.activation_scaling_factor"]
            assert torch.equal(stored, scale.reshape(1))


def test_layers_in_sixteen_bits_are_excluded(model: Path, tmp_path: Path) -> None:
    rules = [
        {"match": "re:.*down_proj", "scheme": None, "stages": []},
        {"match": "Linear", "scheme": {"bits": 4, "group": 64}, "stages": ["rtn"]},
    ]
    source = tmp_path / "packed"
    quantize(Recipe.model_validate({"model": str(model), "rules": rules}), source)
    export(source, tmp_path / "deploy", stages=2)
    config = json.loads((tmp_path / "deploy" / "config.json").read_text())
    assert config["quantization"]["exclude_modules"] == [
        "lm_head",
        "transformer.vocab_embedding",
        "transformer.ln_f",
        "transformer.layers.0.mlp.proj",
    ]
    assert_same(read_legacy(tmp_path / "deploy"), source)


@pytest.mark.parametrize(
    ("scheme", "group", "gpu", "told"),
    [
        ("W4A16", "64", "b200", r"W4A16_AWQ runs on sm80 to sm90, not on b200"),
        ("W4A16", "32", "h100", "takes groups of 64 or 128, not of 32"),
        ("W4A16_ASYM", "64", "h100", "zero points are stored in an order that depends on the GPU"),
        ("W8A16", "channel", "h100", "8-bit weights without rounded inputs are stored in an order"),
        (
            "W8A8",
            None,
            "h100",
            "W8A8 symmetric.* is not exported for the engine builder, only W4A16, W4A8_AWQ",
        ),
        ("W8A8_STATIC", None, "t4", "W8A8_SQ_PER_CHANNEL runs on sm80 and later, not on t4"),
        ("FP8", None, "a100", "FP8 runs on sm89 and later, not on a100"),
        ("FP8_DYNAMIC", None, "b200", "FP8_PER_CHANNEL_PER_TOKEN runs on sm90 to sm90"),
        ("FP8_BLOCK", None, "h100", "FP8_BLOCK .* is not exported for the engine builder"),
        ("NVFP4", None, "h100", "NVFP4 runs on sm100 and later"),
        ("FP8", None, "cpu-avx512", "NVIDIA GPUs alone, not on cpu-avx512. Give --gpu"),
    ],
)
def test_what_it_does_not_run(
    quantized: Callable[..., Path], tmp_path: Path, scheme: str, group: str | None, gpu: str, told: str
) -> None:
    source = quantized(scheme, group)
    with pytest.raises(ExportError, match=told):
        export(source, tmp_path / "deploy", gpu)
    assert not list(tmp_path.iterdir())


def test_other_architectures_are_refused(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    told = (
        "the architecture is Qwen3ForCausalLM; this backend knows LlamaForCausalLM, MistralForCausalLM, "
        "Qwen2ForCausalLM. Use --backend pytorch"
    )
    with pytest.raises(ExportError, match=told):
        export(tiny_model("qwen3"), tmp_path / "deploy")
    folder = copied(tiny_model("llama"), tmp_path / "nameless")
    edit_config(folder / "config.json", folder / "config.json", architectures=None)
    with pytest.raises(ExportError, match="the architecture is none; this backend knows"):
        export(folder, tmp_path / "deploy")


def test_what_cannot_be_split(quantized: Callable[..., Path], tmp_path: Path) -> None:
    source = quantized("W4A16")
    with pytest.raises(
        ExportError, match=r"2 layers cannot be dealt evenly to 3 stages. Use --pipeline-parallel 1 or 2"
    ):
        export(source, tmp_path / "deploy", stages=3)
    with pytest.raises(ExportError, match="cannot be split over 3 devices"):
        export(source, tmp_path / "deploy", devices=3)
    with pytest.raises(UsageError, match="--pipeline-parallel is 0; it must be at least 1"):
        export(source, tmp_path / "deploy", stages=0)
    with pytest.raises(UsageError, match="--tensor-parallel is 0"):
        export(source, tmp_path / "deploy", devices=0)
    assert not list(tmp_path.iterdir())


def test_layers_that_the_builder_would_pad_are_refused(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", "llama", hidden_size=192, head_dim=64, intermediate_size=256)
    quantize(recipe(model, scheme="W4A16", method="rtn", group_size="64"), tmp_path / "packed")
    export(tmp_path / "packed", tmp_path / "one")
    # With a second device it wants multiples of 128 where a side is whole.
    told = (
        r"self_attn.qkv_proj: K = 192 of a device's part is no multiple of 128, to which it is padded.*\n"
        r".*self_attn.o_proj: N = 192 of a device's part is no multiple of 128"
    )
    with pytest.raises(ExportError, match=told):
        export(tmp_path / "packed", tmp_path / "two", devices=2)


def test_fused_layers_must_have_one_scheme(quantized: Callable[..., Path], tmp_path: Path) -> None:
    write_dequantized(quantized("W4A16"), tmp_path / "mixed", {"model.layers.0.self_attn.k_proj": "for this"})
    told = r"qkv_proj: run as one matrix, but their schemes differ: q_proj W4A16.*, k_proj 16-bit"
    with pytest.raises(ExportError, match=told):
        export(tmp_path / "mixed", tmp_path / "out", reference=True)


def test_fused_layers_must_share_what_is_for_a_whole_layer(
    quantized: Callable[..., Path], tmp_path: Path
) -> None:
    source = copied(quantized("FP8"), tmp_path / "source")
    name = "model.layers.1.self_attn.k_proj"
    (shard,) = [f for f in source.glob("*.safetensors") if f"{name}.weight_scale" in load_file(f)]
    tensors = load_file(shard) | {f"{name}.weight_scale": torch.tensor([2.0], dtype=torch.bfloat16)}
    save_file(tensors, shard)
    told = (
        r"layers.1.self_attn.qkv_proj: scales of layers that run as one matrix differ: q_proj \S+ and \S+, "
    )
    with pytest.raises(ExportError, match=told + r"k_proj 2 and \S+, v_proj"):
        export(source, tmp_path / "deploy")


def test_fused_layers_must_share_the_scale_of_their_inputs(
    quantized: Callable[..., Path], tmp_path: Path
) -> None:
    source = copied(quantized("W8A8_STATIC"), tmp_path / "source")
    name = "model.layers.0.mlp.up_proj.input_scale"
    (shard,) = [f for f in source.glob("*.safetensors") if name in load_file(f)]
    save_file(load_file(shard) | {name: torch.tensor([3.0], dtype=torch.bfloat16)}, shard)
    told = r"layers.0.mlp.gate_up_proj: scales .* differ: gate_proj \S+, up_proj 3\. Quantize"
    with pytest.raises(ExportError, match=told):
        export(source, tmp_path / "deploy", "a100")


def test_divisors_that_are_not_one_over_a_number_are_refused(model: Path, tmp_path: Path) -> None:
    quantize(recipe(model, scheme="NVFP4", method="rtn", group_size=None), tmp_path / "packed")
    told = r"_proj: 1 of 1 scales are not 1 over a float32, the first \S+\. Round them first: qdeploy convert"
    with pytest.raises(ExportError, match=told):
        export(tmp_path / "packed", tmp_path / "deploy", "b200")
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


def test_scales_of_each_head_are_refused(quantized: Callable[..., Path], tmp_path: Path) -> None:
    source = copied(quantized("FP8", kv_cache="fp8"), tmp_path / "source")
    for shard in source.glob("*.safetensors"):
        tensors = load_file(shard)
        for name in [name for name in tensors if name.endswith("layers.0.self_attn.k_scale")]:
            tensors[name] = torch.ones(2, 1, 1, dtype=torch.bfloat16)
        for name in [name for name in tensors if name.endswith("layers.1.self_attn.v_scale")]:
            del tensors[name]
        save_file(tensors, shard)
    index = source / "model.safetensors.index.json"
    index.write_text(
        index.read_text().replace('"model.layers.1.self_attn.v_scale"', '"model.norm.weight"', 1)
    )
    with pytest.raises(ExportError, match=r"layers.0.self_attn: has a scale of its cache for each head") as e:
        export(source, tmp_path / "deploy")
    assert "model.layers.1.self_attn: v_scale missing" in str(e.value)
    with pytest.raises(ExportError, match=r"on t4 \(sm75\) there is no cache in FP8"):
        export(source, tmp_path / "deploy", "t4")


def test_a_used_folder_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "mine").touch()
    with pytest.raises(OutputError, match="not empty"):
        export(model, tmp_path / "deploy")


def test_the_lineage_goes_on(quantized: Callable[..., Path], tmp_path: Path) -> None:
    source, folder = quantized("W4A16"), tmp_path / "deploy"
    export(source, folder, devices=2)
    before, after = load_manifest(source), load_manifest(folder)
    assert before is not None and after is not None
    (step,) = after.conversions
    assert (step.source, step.target) == ("compressed-tensors", "trtllm-build")
    assert step.sha256 == CheckpointReader(source).sha256
    assert after.modules == before.modules
    assert after.files == {
        name: sha256_file(folder / name) for name in ("rank0.safetensors", "rank1.safetensors")
    }
    done = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True, check=True
    )
    assert "qdeploy.json: OK" in done.stdout and "tokenizer/config.json: OK" in done.stdout


def test_sixteen_bits_have_no_lineage(model: Path, tmp_path: Path) -> None:
    export(model, tmp_path / "deploy")
    assert not (tmp_path / "deploy" / "qdeploy.json").exists()
    assert (tmp_path / "deploy" / "SHA256SUMS").is_file()


def test_layers_without_a_kernel_can_be_dequantized(quantized: Callable[..., Path], tmp_path: Path) -> None:
    report = export(quantized("W4A16_ASYM", "64"), tmp_path / "deploy", reference=True)
    assert report.quantized_layers == 0
    assert [path.name for path in tmp_path.iterdir()] == ["deploy"]


def test_attention_over_a_window_limits_the_engine(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied(tiny_model("mistral"), tmp_path / "model")
    edit_config(folder / "config.json", folder / "config.json", sliding_window=32)
    report = export(folder, tmp_path / "deploy")
    assert "attends 32 tokens back" in report.findings[0].problem
    assert "MAX_SEQ_LEN:-32}" in (tmp_path / "deploy" / "build.sh").read_text()


def test_support_is_told_for_a_scheme() -> None:
    ask = EngineBuilderExporter().support
    assert ask(preset("W8A8_STATIC"), 4096, 4096, gpu="h100").kind == "converted"
    assert ask(preset("W4A16"), 4096, 4096, gpu="h100").reason == "W4A16_AWQ; not run"
    assert ask(Scheme("W4A16", 4, 64), 4095, 4096, gpu="h100").reason.startswith("ModelOpt packs pairs")
    assert ask(preset("FP8"), 4096, 4096, gpu="h100", experts=True).reason == "no experts are exported"
    assert all(ask(scheme, 4096, 4096, gpu="cpu").kind == "reference" for scheme in PRESETS.values())
