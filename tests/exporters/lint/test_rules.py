"""Each rule, on a good checkpoint that was broken in exactly its way."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM

from qdeploy.conversion import convert
from qdeploy.errors import CheckpointError
from qdeploy.exporters.base import Finding
from qdeploy.exporters.lint.against import correlation, even
from qdeploy.exporters.lint.linter import lint
from qdeploy.exporters.targets import TARGETS
from qdeploy.exporters.vllm import VllmExporter
from qdeploy.formats import awq, bits
from qdeploy.formats.ct_config import KV_CACHE
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.pipeline import quantize
from qdeploy.schemes import Scheme
from tests.packed import (
    W4A16,
    W4A16_ASYM,
    W8A8,
    W8A16,
    WEIGHTS,
    edit_config,
    edit_tensors,
    quantize_folder,
    swap_nibbles,
)
from tests.qdeploy.test_pipeline import recipe

Q, K, OUT = (f"model.layers.0.self_attn.{leaf}_proj" for leaf in "qko")
Break = Callable[[Path], None]
Make = Callable[..., Path]


@pytest.fixture
def make(tiny_llama: Path, wide: Path, tmp_path: Path) -> Make:
    """Writes a tiny quantized Llama of a scheme, in a format; a minifloat's by `qdeploy quantize`."""

    def folder(scheme: Scheme | str = W4A16, format: str = "compressed-tensors") -> Path:
        packed = tmp_path / "packed"
        if isinstance(scheme, str):
            model = wide if scheme == "FP8_BLOCK" else tiny_llama
            quantize(recipe(model, scheme=scheme, method="rtn", group_size=None), packed)
        else:
            quantize_folder(tiny_llama, packed, scheme)
        if format != "compressed-tensors":
            convert(packed, tmp_path / format, format, round_scales=True)
            packed = tmp_path / format
        single(packed)
        return packed

    return folder


def single(folder: Path) -> None:
    """All weights in one file, as `edit_tensors` wants them."""
    files = sorted(folder.glob("*.safetensors"))
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    for file in [*files, folder / "model.safetensors.index.json"]:
        file.unlink(missing_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def edit(name: str, change: Callable[[Tensor], Tensor | None]) -> Break:
    """Change a tensor."""

    def broken(folder: Path) -> None:
        edit_tensors(folder, {name: change(CheckpointReader(folder).get(name).clone())})

    return broken


def edit_all(suffix: str, change: Callable[[Tensor], Tensor]) -> Break:
    """Change the tensor of every layer."""

    def broken(folder: Path) -> None:
        reader = CheckpointReader(folder)
        names = [name for name in reader.names if name.endswith(f".{suffix}")]
        edit_tensors(folder, {name: change(reader.get(name).clone()) for name in names})

    return broken


def add(name: str, tensor: Tensor) -> Break:
    return lambda folder: edit_tensors(folder, {name: tensor})


def set_block(**changes: Any) -> Break:
    """Change fields of quantization_config, and of what repeats it."""

    def broken(folder: Path) -> None:
        block = json.loads((folder / "config.json").read_text())["quantization_config"] | changes
        edit_config(folder / "config.json", folder / "config.json", quantization_config=block)
        if (folder / "quantize_config.json").exists():
            (folder / "quantize_config.json").write_text(json.dumps(block))

    return broken


def set_config(**changes: Any) -> Break:
    return lambda folder: edit_config(folder / "config.json", folder / "config.json", **changes)


def put(*values: float) -> Callable[[Tensor], Tensor]:
    """Write values at the front of a tensor."""

    def change(tensor: Tensor) -> Tensor:
        tensor.view(-1)[: len(values)] = torch.tensor(values).to(tensor.dtype)
        return tensor

    return change


def codes(findings: Iterable[Finding]) -> set[str]:
    return {finding.code for finding in findings}


def told(findings: Iterable[Finding], code: str) -> str:
    return next(str(finding) for finding in findings if finding.code == code)


def regrouped(packed: Tensor) -> Tensor:
    """Words of AWQ in plain order."""
    return bits.pack(bits.unpack(awq._deinterleave(packed), 4, len(packed)).T, 4)


SOUND = [
    (W4A16, "compressed-tensors"),
    (W4A16_ASYM, "compressed-tensors"),
    (W8A16, "compressed-tensors"),
    (W8A8, "compressed-tensors"),
    (W4A16, "gptq"),
    (W4A16_ASYM, "gptq_v2"),
    (W4A16, "awq"),
    (W4A16_ASYM, "awq"),
    (W4A16, "modelopt"),
    ("NVFP4", "modelopt"),
    ("NVFP4", "compressed-tensors"),
    ("FP8", "modelopt"),
    ("FP8_DYNAMIC", "modelopt"),
    ("MXFP8", "compressed-tensors"),
    ("MXFP8", "modelopt"),
    ("MXFP4", "modelopt"),
    ("W8A8_STATIC", "modelopt"),
    ("FP8", "fp8"),
    ("FP8_BLOCK", "fp8"),
]


@pytest.mark.parametrize(("scheme", "format"), SOUND, ids=lambda v: v if isinstance(v, str) else v.name)
def test_nothing_is_wrong_with_sound_folders(
    make: Make, tiny_llama: Path, scheme: Scheme | str, format: str
) -> None:
    assert lint(make(scheme, format), deep=True, original=CheckpointReader(tiny_llama)) == []


def test_nothing_is_wrong_with_any_family(tiny_family: Path, tmp_path: Path) -> None:
    assert lint(tiny_family, deep=True) == []
    quantize(recipe(tiny_family, method="rtn", group_size="auto"), tmp_path / "packed")
    assert lint(tmp_path / "packed", deep=True, original=CheckpointReader(tiny_family)) == []


@pytest.mark.parametrize(
    ("scheme", "format", "break_it", "code"),
    [
        (W4A16, "compressed-tensors", edit(f"{Q}.weight_shape", lambda t: None), "QD201"),
        (W4A16, "gptq", edit(f"{Q}.qzeros", lambda t: None), "QD201"),
        (W4A16, "modelopt", edit(f"{OUT}.pre_quant_scale", lambda t: None), "QD201"),
        (W4A16, "gptq", add(f"{Q}.weight", torch.zeros(64, 64, dtype=torch.bfloat16)), "QD202"),
        (W4A16, "compressed-tensors", add(f"{Q}.weight_zero_point", torch.zeros(8, 2).int()), "QD202"),
        (W4A16, "compressed-tensors", edit(f"{Q}.weight_packed", lambda t: t.long()), "QD203"),
        (W4A16, "compressed-tensors", edit(f"{Q}.weight_packed", lambda t: t[:, :-1]), "QD204"),
        (W4A16, "compressed-tensors", edit(f"{Q}.weight_scale", lambda t: t.T), "QD205"),
        (W4A16, "awq", edit(f"{Q}.scales", lambda t: t.T), "QD205"),
        (W4A16, "awq", set_block(group_size=64), "QD206"),
        (W4A16, "gptq", set_block(group_size=16), "QD206"),
        (W4A16, "modelopt", edit(f"{Q}.weight_scale", lambda t: t[:, :1]), "QD206"),
        (W4A16, "compressed-tensors", edit(f"{Q}.weight_shape", put(64, 128)), "QD207"),
        (W4A16, "compressed-tensors", add("lm_head.weight_shape", torch.tensor([96, 64])), "QD208"),
        (W4A16, "gptq", add("lm_head.g_idx", torch.zeros(64).int()), "QD208"),
        (W4A16, "awq", edit("lm_head.weight", lambda t: t.to(torch.int8)), "QD208"),
        (W4A16, "modelopt", add(f"{Q}.pre_quant_scale", torch.ones(64).bfloat16()), "QD212"),
        (W4A16, "gptq", add("model.layers.7.mlp.up_proj.qweight", torch.zeros(8, 64).int()), "QD210"),
        (W4A16, "compressed-tensors", lambda folder: (folder / "tokenizer.json").unlink(), "QD103"),
        (W4A16, "awq", lambda folder: (folder / "tokenizer_config.json").unlink(), "QD104"),
        (W4A16, "modelopt", lambda folder: (folder / "hf_quant_config.json").unlink(), "QD106"),
        (W4A16, "compressed-tensors", set_block(quantization_status="frozen"), "QD402"),
        (W4A16, "compressed-tensors", set_block(ignore=[]), "QD404"),
        (W4A16, "compressed-tensors", set_block(ignore=["lm_head", Q]), "QD405"),
        (W4A16, "compressed-tensors", set_block(ignore=["lm_head", "model.layers.9.up_proj"]), "QD406"),
        (W4A16, "awq", set_block(modules_to_not_convert=["0.self_attn.q"]), "QD405"),
        (W4A16, "gptq", set_block(dynamic={f"-:.*{Q}": {}}), "QD405"),
        (W4A16, "gptq", set_block(dynamic={r"+:.*\.(?:q|k|v)_proj$": {"damp": 1}}), "QD407"),
        (W4A16, "gptq", set_block(desc_act=True), "QD408"),
        ("FP8_BLOCK", "fp8", edit(f"{Q}.weight_scale_inv", lambda t: t[:, :0]), "QD204"),
        ("FP8", "fp8", edit(f"{Q}.input_scale", lambda t: None), "QD201"),
        (W4A16, "compressed-tensors", set_block(kv_cache_scheme=KV_CACHE), "QD411"),
        (W4A16, "compressed-tensors", set_block(kv_cache_scheme=KV_CACHE | {"num_bits": 4}), "QD410"),
        (W4A16, "compressed-tensors", add("model.layers.0.self_attn.k_scale", torch.ones(1)), "QD409"),
    ],
)
def test_headers(make: Make, scheme: Scheme, format: str, break_it: Break, code: str) -> None:
    folder = make(scheme, format)
    break_it(folder)
    found = codes(lint(folder, deep=True))
    # Zero points in words have the wrong shape too.
    assert found - ({"QD204"} if code == "QD206" else set()) == {code}


def test_the_message_of_a_group_size_names_both(make: Make) -> None:
    folder = make(W4A16, "awq")
    set_block(group_size=64)(folder)
    problem = f"{Q}: scales has shape [2, 64], not [1, 64]: 2 groups of 32 columns, where the config says 64"
    assert any(problem in str(finding) for finding in lint(folder))


def test_both_files_of_a_config(make: Make) -> None:
    folder = make(W4A16, "gptq")
    path = folder / "quantize_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bits": 8}))
    assert told(lint(folder), "QD105").startswith("quantize_config.json: bits is 8 in")


@pytest.mark.parametrize(
    ("scheme", "format", "break_it", "code"),
    [
        (W4A16, "compressed-tensors", edit(f"{Q}.weight_scale", put(0.0)), "QD301"),
        (W4A16, "gptq", edit(f"{Q}.scales", put(-1.0)), "QD312"),
        (W4A16, "gptq", edit(f"{Q}.scales", put(float("inf"), float("nan"))), "QD301"),
        ("MXFP8", "compressed-tensors", edit(f"{Q}.weight_scale", put(255)), "QD301"),
        ("FP8", "modelopt", edit(f"{OUT}.input_scale", lambda t: torch.tensor(-1.0)), "QD301"),
        (W4A16, "gptq", edit(f"{Q}.scales", put(2.0**-16)), "QD302"),
        (W4A16, "awq", edit(f"{Q}.scales", put(1 + 2.0**-10)), "QD303"),
        (W4A16, "gptq", edit_all("qzeros", lambda t: torch.full_like(t, -0x77777778)), "QD304"),
        (W4A16, "gptq", edit(f"{Q}.qzeros", put(0)), "QD304"),
        (W4A16, "gptq", edit(f"{Q}.g_idx", lambda t: t.flip(0)), "QD408"),
        ("NVFP4", "compressed-tensors", edit(f"{Q}.weight_global_scale", lambda t: 2 * t), "QD503"),
        ("NVFP4", "modelopt", edit(f"{K}.input_scale", lambda t: 2 * t), "QD503"),
        ("FP8_DYNAMIC", "compressed-tensors", edit(f"{Q}.weight", put(float("nan"))), "QD309"),
        (W4A16, "awq", edit_all("qweight", regrouped), "QD307"),
    ],
)
def test_values(make: Make, scheme: Scheme | str, format: str, break_it: Break, code: str) -> None:
    folder = make(scheme, format)
    break_it(folder)
    assert lint(folder) == []
    assert codes(lint(folder, deep=True)) == {code}


def test_float16_scales_are_whole_where_the_model_runs_in_float16(make: Make) -> None:
    folder = make(W4A16, "awq")
    edit(f"{Q}.scales", put(1 + 2.0**-10))(folder)
    set_config(dtype="float16")(folder)
    assert lint(folder, deep=True) == []


def test_both_codes_that_stand_for_no_number(make: Make) -> None:
    folder = make("FP8_DYNAMIC")
    edit(f"{Q}.weight", lambda t: put(127, 255)(t.view(torch.uint8)).view(t.dtype))(folder)
    assert "2 of 4096 weights are not a number" in told(lint(folder, deep=True), "QD309")


def test_rules_that_reach_fused_layers_too(make: Make) -> None:
    folder = make(W4A16, "gptq")
    set_block(dynamic={r"+:.*\.(?:q|k|v|qkv)_proj$": {"damp": 1}})(folder)
    assert lint(folder) == []


def test_no_engine_is_asked_about_a_broken_folder(make: Make) -> None:
    folder = make(W8A16)
    edit(f"{Q}.weight_scale", lambda t: None)(folder)
    assert codes(lint(folder, engine=VllmExporter(), target=TARGETS["cpu-avx512"])) == {"QD201"}


def test_scales_of_rows_and_columns_do_not_matter_for_the_comparison() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 48, generator=generator)
    columns = torch.exp2(torch.randint(-6, 7, (48,), generator=generator).float())
    rows = torch.exp2(torch.randint(-6, 7, (24, 1), generator=generator).float())
    assert correlation(even(weight * columns * rows), even(weight)) > 0.999
    assert correlation(even(torch.randn(24, 48, generator=generator)), even(weight)) < 0.2


def test_zero_points_of_the_other_version_are_named(make: Make) -> None:
    folder = make(W4A16, "gptq_v2")
    set_block(checkpoint_format="gptq", format="gptq")(folder)
    found = lint(folder, deep=True)
    assert "stored as 8, as version 2 does; the config says 1. Set checkpoint_format to gptq_v2" in told(
        found, "QD304"
    )


def test_zero_points_of_0_in_the_first_version(make: Make) -> None:
    folder = make(W4A16_ASYM, "gptq_v2")
    fields = torch.full((2, 64), 7, dtype=torch.uint8)
    fields[0, 0] = 15
    edit(f"{Q}.qzeros", lambda t: bits.pack(fields, 4))(folder)
    set_block(checkpoint_format="gptq", format="gptq")(folder)
    assert "1 of 128 zero points are 0" in told(lint(folder, deep=True), "QD305")


def test_asymmetric_zero_points_of_the_other_version_are_seen_in_the_codes(make: Make) -> None:
    folder = make(W4A16_ASYM, "gptq_v2")
    set_block(checkpoint_format="gptq", format="gptq")(folder)
    assert "codes are -0.9" in told(lint(folder, deep=True), "QD306")


def test_signed_codes_that_were_read_as_unsigned(make: Make) -> None:
    folder = make()
    edit(f"{Q}.weight_packed", lambda t: t ^ -0x77777778)(folder)
    problem = told(lint(folder, deep=True), "QD308")
    assert "of the codes are 6 steps or more off their zero points" in problem


@pytest.mark.parametrize(
    ("format", "break_it", "cause"),
    [
        ("compressed-tensors", edit_all("weight_packed", swap_nibbles), "nibbles are swapped along columns"),
        ("gptq", edit_all("qweight", swap_nibbles), "nibbles are swapped along columns"),
        ("awq", edit_all("qweight", swap_nibbles), "nibbles of AWQ's words are swapped"),
        ("awq", edit_all("qweight", regrouped), "packed in plain order"),
        (
            "modelopt",
            edit(f"{Q}.weight", lambda t: ((t & 15) << 4) | (t >> 4)),
            "nibbles are swapped along rows",
        ),
    ],
)
def test_beside_the_original_codes_in_another_order_are_explained(
    make: Make, tiny_llama: Path, format: str, break_it: Break, cause: str
) -> None:
    folder = make(W4A16, format)
    break_it(folder)
    assert cause in told(lint(folder, original=CheckpointReader(tiny_llama)), "QD311")


def test_channels_that_were_scaled_are_no_difference(make: Make, tiny_llama: Path, tmp_path: Path) -> None:
    quantize(recipe(tiny_llama, method="awq+rtn"), tmp_path / "awq")
    assert lint(tmp_path / "awq", original=CheckpointReader(tiny_llama)) == []


def test_a_tied_head_is_not_quantized(make: Make) -> None:
    folder = make()
    set_config(tie_word_embeddings=True)(folder)
    add("lm_head.weight_packed", torch.zeros(96, 8).int())(folder)
    add("lm_head.weight_scale", torch.ones(96, 2).bfloat16())(folder)
    assert "has weight_packed, weight_scale" in told(lint(folder), "QD211")


def test_tensors_of_another_architecture(make: Make) -> None:
    folder = make()
    set_config(num_hidden_layers=3)(folder)
    found = lint(folder)
    assert codes(found) == {"QD209"}
    assert "7 of 22 linear layers of LlamaForCausalLM have no tensors" in told(found, "QD209")


def test_layers_that_run_as_one_are_stored_alike(make: Make, tiny_llama: Path) -> None:
    folder = make()
    weight = load_file(tiny_llama / WEIGHTS)[f"{Q}.weight"]
    suffixes = ("weight_packed", "weight_scale", "weight_shape")
    edit_tensors(folder, {f"{Q}.weight": weight, **dict.fromkeys([f"{Q}.{s}" for s in suffixes])})
    set_block(ignore=["lm_head", Q])(folder)
    found = lint(folder)
    assert codes(found) == {"QD501"}
    assert "q_proj 16-bit, k_proj W4A16 symmetric, group 32" in told(found, "QD501")


def test_a_format_that_the_tensors_are_not_in(make: Make) -> None:
    folder = make()
    block = json.loads((folder / "config.json").read_text())["quantization_config"]
    block["config_groups"]["group_0"]["format"] = "int-quantized"
    set_block(format="int-quantized", config_groups=block["config_groups"])(folder)
    assert codes(lint(folder)) == {"QD403"}


def test_a_quantization_config_without_quantized_layers(make: Make, tiny_llama: Path) -> None:
    folder = make()
    (folder / WEIGHTS).write_bytes((tiny_llama / WEIGHTS).read_bytes())
    assert "QD401" in codes(lint(folder))


def test_index_and_files(tiny_llama: Path, tmp_path: Path) -> None:
    quantize(recipe(tiny_llama), tmp_path / "packed")
    index = tmp_path / "packed" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    name, file = next(iter(content["weight_map"].items()))
    del content["weight_map"][name]
    content["weight_map"]["model.ghost"] = file
    index.write_text(json.dumps(content))
    found = lint(tmp_path / "packed")
    assert [(finding.code, finding.module) for finding in found] == [("QD102", file)] * 2
    assert "does not hold: 1 tensors, the first model.ghost" in str(found[0])
    assert f"does not list for it: 1 tensors, the first {name}" in str(found[1])


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda folder: (folder / "config.json").write_text("{"), "is not valid JSON"),
        (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9]), "truncated"),
        (set_config(model_type="unheard", architectures=["Unheard"]), "no causal language model"),
        (set_block(quant_method="hqq"), "'hqq'"),
    ],
)
def test_folders_that_cannot_be_read(make: Make, break_it: Break, told: str) -> None:
    folder = make()
    break_it(folder)
    (found,) = lint(folder)
    assert found.code == "QD101"
    assert told in found.problem


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere is not a folder"):
        lint(tmp_path / "nowhere")


def test_models_without_attention_are_told_apart(tmp_path: Path) -> None:
    config = MambaConfig(num_hidden_layers=1, hidden_size=32, vocab_size=64)
    MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    assert codes(lint(tmp_path / "mamba", deep=True)) == {"QD103"}
    (found,) = lint(tmp_path / "mamba", engine=VllmExporter(), target=TARGETS["h100"])
    assert "config.json of mamba has no num_attention_heads" in found.problem
