"""Packed checkpoints in another format: what they stand for stays, and what cannot be is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from qdeploy.bench.integrity import check_integrity
from qdeploy.checkpoint.inspection import inspect_checkpoint
from qdeploy.checkpoint.manifest import load_manifest
from qdeploy.cli.main import build
from qdeploy.conversion import convert
from qdeploy.errors import CheckpointError, ConversionError, QDeployError, UnknownNameError
from qdeploy.exporters.targets import TARGETS
from qdeploy.exporters.vllm import check
from qdeploy.files import sha256_file
from qdeploy.formats import awq
from qdeploy.formats.dequantize import dequantized_state
from qdeploy.formats.packed import BESIDE, FORMATS, Packed
from qdeploy.kv_cache import is_cache_scale
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.pipeline import quantize
from qdeploy.recipe import Recipe
from qdeploy.schemes import Scheme
from tests.packed import WEIGHTS, edit_config, edit_tensors, quantize_folder
from tests.qdeploy.test_pipeline import recipe

SYMMETRIC, ASYMMETRIC = Scheme("W4A16", 4, 32), Scheme("W4A16_ASYM", 4, 32, symmetric=False)
THREE, EIGHT = Scheme("W3A16", 3, 32), Scheme("W8A16", 8, None)


def state(folder: Path) -> dict[str, Tensor]:
    return dict(dequantized_state(folder))


def same(a: Path, b: Path) -> bool:
    """Whether two folders stand for the same weights, to the last bit."""
    first, second = state(a), state(b)
    return first.keys() == second.keys() and all(torch.equal(t, second[name]) for name, t in first.items())


@pytest.fixture
def packed(tiny_llama: Path, tmp_path: Path) -> Callable[[Scheme], Path]:
    def make(scheme: Scheme) -> Path:
        folder = tmp_path / "packed"
        quantize_folder(tiny_llama, folder, scheme)
        return folder

    return make


@pytest.mark.parametrize(
    ("scheme", "target"),
    [
        (SYMMETRIC, "gptq"),
        (SYMMETRIC, "gptq_v2"),
        (SYMMETRIC, "awq"),
        (ASYMMETRIC, "gptq_v2"),
        (ASYMMETRIC, "awq"),
        (THREE, "gptq"),
        (EIGHT, "gptq"),
        (EIGHT, "gptq_v2"),
        (SYMMETRIC, "modelopt"),
        (EIGHT, "modelopt"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_there_and_back(
    packed: Callable[[Scheme], Path], tmp_path: Path, scheme: Scheme, target: str
) -> None:
    source = packed(scheme)
    there, back = tmp_path / "there", tmp_path / "back"
    done = convert(source, there, target)
    assert (done.source, done.target, done.layers, done.rounded_scales) == (
        "compressed-tensors",
        target,
        14,
        0,
    )
    assert same(there, source)
    found = Packed(CheckpointReader(there))
    assert found.format is FORMATS[target]
    assert set(found.schemes.values()) == {scheme}
    convert(there, back, "compressed-tensors")
    assert same(back, source)
    assert Packed(CheckpointReader(back)).schemes == Packed(CheckpointReader(source)).schemes
    assert not check(back, TARGETS["h100"])


def test_between_gptq_and_awq(packed: Callable[[Scheme], Path], tmp_path: Path) -> None:
    source = packed(ASYMMETRIC)
    convert(source, tmp_path / "awq", "awq")
    convert(tmp_path / "awq", tmp_path / "gptq", "gptq_v2")
    assert same(tmp_path / "gptq", source)


def test_a_checkpoint_of_our_own_keeps_its_fingerprints_and_tells_where_it_is_from(
    tiny_llama: Path, tmp_path: Path
) -> None:
    quantize(recipe(tiny_llama), tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "gptq", "gptq")
    convert(tmp_path / "gptq", tmp_path / "awq", "awq")
    for name in ("gptq", "awq"):
        found = check_integrity(tmp_path / name)
        assert (found.layers, found.changed_layers, found.changed_files) == (14, {}, {})
    manifest = load_manifest(tmp_path / "awq")
    assert manifest is not None
    assert [(c.source, c.target) for c in manifest.conversions] == [
        ("compressed-tensors", "gptq"),
        ("gptq", "awq"),
    ]
    assert manifest.conversions[1].sha256 == CheckpointReader(tmp_path / "gptq").sha256


def test_everything_else_keeps_its_bytes(packed: Callable[[Scheme], Path], tmp_path: Path) -> None:
    source = packed(SYMMETRIC)
    convert(source, tmp_path / "out", "gptq")
    before, after = CheckpointReader(source), CheckpointReader(tmp_path / "out")
    owned, packed_anew = Packed(before).tensors, Packed(after).tensors
    kept = [name for name in before.names if name not in owned]
    assert sorted(kept) == sorted(name for name in after.names if name not in packed_anew)
    assert all(torch.equal(before.get(name), after.get(name)) for name in kept)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (source / file).read_bytes() == (tmp_path / "out" / file).read_bytes()


@pytest.mark.parametrize(
    ("scheme", "target", "told"),
    [
        ("W8A16", "awq", r"awq cannot hold 14 of 14 layers, .*AWQ packs 4 bits, not 8. --to gptq or gptq_v2"),
        ("W3A16", "awq", "AWQ packs 4 bits, not 3"),
        ("W8A8", "gptq", r"no rounding of activations\. Stay with compressed-tensors"),
        ("FP8_DYNAMIC", "awq", "AWQ holds integer weights alone"),
        ("W4A16_ASYM", "modelopt", "no zero points; W4A16 goes without"),
        ("W8A8", "modelopt", "ModelOpt has no W8A8 symmetric, per channel"),
        ("W4A16", "fp8", "fp8 holds weights in E4M3 alone, no W4A16 symmetric, group 32. --to gptq or"),
        ("FP8_DYNAMIC", "fp8", r"no FP8_DYNAMIC e4m3, per channel\. --to modelopt can\."),
    ],
)
def test_what_a_format_cannot_hold(
    tiny_llama: Path, tmp_path: Path, scheme: str, target: str, told: str
) -> None:
    size = {"group_size": "32"} if "A16" in scheme else {"group_size": None}
    quantize(recipe(tiny_llama, scheme=scheme, method="rtn", **size), tmp_path / "source")
    with pytest.raises(ConversionError, match=told):
        convert(tmp_path / "source", tmp_path / "out", target)
    assert not list(tmp_path.glob("out*"))


def test_a_zero_point_of_0_takes_version_2(packed: Callable[[Scheme], Path], tmp_path: Path) -> None:
    source = packed(ASYMMETRIC)
    name = "model.layers.1.mlp.up_proj.weight_zero_point"
    zeros = CheckpointReader(source).get(name).clone()
    zeros[0, 0] &= ~15  # the first row's
    edit_tensors(source, {name: zeros})
    with pytest.raises(ConversionError, match=r"layers\.1\.mlp\.up_proj: version 1 .* gptq_v2 has"):
        convert(source, tmp_path / "out", "gptq")
    assert not list(tmp_path.glob("out*"))
    convert(source, tmp_path / "out", "gptq_v2")
    assert same(tmp_path / "out", source)


def test_act_order_is_decoded_and_not_converted(packed: Callable[[Scheme], Path], tmp_path: Path) -> None:
    convert(packed(SYMMETRIC), tmp_path / "gptq", "gptq")
    foreign(tmp_path / "gptq", desc_act=True)
    assert inspect_checkpoint(tmp_path / "gptq").served_by == ["transformers with gptqmodel"]
    convert(tmp_path / "gptq", tmp_path / "static", "gptq_v2")  # groups are still runs of columns
    module = "model.layers.1.mlp.up_proj"
    before = state(tmp_path / "gptq")[f"{module}.weight"]
    (shard,) = (tmp_path / "gptq").glob("*.safetensors")
    tensors = load_file(shard)
    tensors[f"{module}.g_idx"][[0, 63]] = torch.tensor([1, 0], dtype=torch.int32)
    save_file(tensors, shard, metadata={"format": "pt"})
    after = state(tmp_path / "gptq")[f"{module}.weight"]
    assert sorted(set((before != after).nonzero()[:, 1].tolist())) == [0, 63]
    with pytest.raises(ConversionError, match=r"up_proj: 2 of 64 columns are in another group .*act-order"):
        convert(tmp_path / "gptq", tmp_path / "out", "gptq_v2")
    assert not list(tmp_path.glob("out*"))


def test_several_schemes_take_compressed_tensors(tiny_llama: Path, tmp_path: Path) -> None:
    rules = [
        {"match": "re:.*down_proj", "scheme": {"bits": 8, "group": 32}, "stages": ["rtn"]},
        {"match": "Linear", "scheme": {"bits": 4, "group": 32}, "stages": ["rtn"]},
    ]
    quantize(Recipe.model_validate({"model": str(tiny_llama), "rules": rules}), tmp_path / "source")
    with pytest.raises(
        ConversionError, match=r"GPTQ folders have one scheme; this one has 2: .*down_proj W8A16"
    ):
        convert(tmp_path / "source", tmp_path / "out", "gptq")


def test_a_cache_in_fp8_stays_with_compressed_tensors(tiny_llama: Path, tmp_path: Path) -> None:
    quantize(recipe(tiny_llama, method="rtn", kv_cache="fp8"), tmp_path / "source")
    with pytest.raises(ConversionError, match="cache in FP8, which the config of awq cannot say"):
        convert(tmp_path / "source", tmp_path / "out", "awq")


def test_a_cache_with_scales_for_each_head_stays_as_it_is(tiny_llama: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    quantize(recipe(tiny_llama, method="rtn", kv_cache="fp8"), source)
    per_head(source)
    with pytest.raises(ConversionError, match="a scale of its cache for each head"):
        convert(source, tmp_path / "out", "modelopt")


def per_head(folder: Path) -> None:
    """Give each of the two heads the scale that both have."""
    for shard in folder.glob("*.safetensors"):
        tensors = load_file(shard)
        spread = {
            n: t.expand(2).reshape(2, 1, 1).clone() if is_cache_scale(n) else t for n, t in tensors.items()
        }
        save_file(spread, shard, metadata={"format": "pt"})


def test_routers_are_named_so_that_readers_find_them_alone(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    quantize(recipe(tiny_model("qwen3_moe"), method="rtn"), tmp_path / "source")
    for target in ("gptq", "awq"):
        convert(tmp_path / "source", tmp_path / target, target)
        assert same(tmp_path / target, tmp_path / "source")
    rules = json.loads((tmp_path / "gptq" / "quantize_config.json").read_text())["dynamic"]
    patterns = [re.compile(rule.removeprefix("-:")) for rule in rules]
    router, gate = "model.layers.0.mlp.gate", "model.layers.0.mlp.experts.0.gate_proj"
    assert any(p.match(router) for p in patterns)
    assert not any(p.match(gate) for p in patterns)
    block = json.loads((tmp_path / "awq" / "config.json").read_text())["quantization_config"]
    assert router in block["modules_to_not_convert"]
    # A list in which readers would take a router for gate_proj too is left out: then they look at dtypes.
    assert awq.block({"mlp.gate_proj": SYMMETRIC}, ["mlp.gate"])["modules_to_not_convert"] is None


def test_a_damaged_file_beside_the_config_is_named(packed: Callable[[Scheme], Path], tmp_path: Path) -> None:
    convert(packed(SYMMETRIC), tmp_path / "foreign", "gptq")
    foreign(tmp_path / "foreign", "quantize_config.json")
    for content, told in (("{", "is not valid JSON"), ("[]", "holds list, not an object")):
        (tmp_path / "foreign" / "quantize_config.json").write_text(content)
        with pytest.raises(CheckpointError, match=rf"quantize_config\.json {told}"):
            Packed(CheckpointReader(tmp_path / "foreign"))


def foreign(folder: Path, move_to: str | None = None, **changes: Any) -> None:
    """Change the block; or move it to a file beside config.json, as older tools do."""
    config = json.loads((folder / "config.json").read_text())
    block = {k: v for k, v in (config["quantization_config"] | changes).items() if v is not None}
    (folder / "quantize_config.json").unlink(missing_ok=True)
    edit_config(
        folder / "config.json", folder / "config.json", quantization_config=None if move_to else block
    )
    if move_to:
        (folder / move_to).write_text(json.dumps(block))


@pytest.mark.parametrize(
    ("target", "moved", "changes"),
    [
        ("gptq", None, {"checkpoint_format": None, "format": None, "meta": None}),  # AutoGPTQ
        ("gptq", "quantize_config.json", {"quant_method": None, "checkpoint_format": None, "format": None}),
        ("gptq", None, {"bits": None, "w_bit": 4, "group_size": None, "q_group_size": 32}),
        ("awq", None, {"version": "GEMM"}),
        (
            "awq",
            "quant_config.json",
            {"quant_method": None, "bits": None, "group_size": None, "w_bit": 4, "q_group_size": 32},
        ),
    ],
)
def test_other_spellings_are_read(
    packed: Callable[[Scheme], Path], tmp_path: Path, target: str, moved: str | None, changes: dict[str, Any]
) -> None:
    source, folder = packed(SYMMETRIC), tmp_path / "foreign"
    convert(source, folder, target)
    foreign(folder, moved, **changes)
    assert set(Packed(CheckpointReader(folder)).schemes.values()) == {SYMMETRIC}
    convert(folder, tmp_path / "out", "compressed-tensors")
    assert same(tmp_path / "out", source)
    assert not any((tmp_path / "out" / name).exists() for name in BESIDE)
    assert not check(tmp_path / "out", TARGETS["h100"])


def test_rules_of_gptqmodel_are_followed(packed: Callable[[Scheme], Path], tmp_path: Path) -> None:
    source, folder = packed(SYMMETRIC), tmp_path / "foreign"
    convert(source, folder, "gptq")
    rules = {"-:.*lm_head": {}, r"+:.*\.(q_proj|k_proj|v_proj)$": {"group_size": 32, "sym": True}}
    foreign(folder, bits=4, group_size=64, dynamic=rules)
    schemes = Packed(CheckpointReader(folder)).schemes
    assert schemes["model.layers.0.self_attn.q_proj"].group_size == 32
    assert schemes["model.layers.0.mlp.up_proj"].group_size == 64
    with pytest.raises(CheckpointError, match=r"up_proj .* qzeros has shape \[2, 16\], expected \[1, 16\]"):
        Packed(CheckpointReader(folder)).read("model.layers.0.mlp.up_proj")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"quant_method": "exl3"},
            "quantized with 'exl3'; only compressed-tensors, gptq, gptq_v2, awq, model",
        ),
        ({"checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
        ({"bits": 16}, "is damaged"),
        ({"quant_method": "awq", "version": "gemv"}, "AWQ's 'gemv' packing"),
    ],
)
def test_what_cannot_be_read(
    packed: Callable[[Scheme], Path], tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    convert(packed(SYMMETRIC), tmp_path / "foreign", "gptq")
    foreign(tmp_path / "foreign", **changes)
    with pytest.raises(CheckpointError, match=told):
        Packed(CheckpointReader(tmp_path / "foreign"))


def test_scales_that_are_not_exact_are_refused_or_counted(
    packed: Callable[[Scheme], Path], tmp_path: Path
) -> None:
    source, name = packed(SYMMETRIC), "model.layers.0.mlp.up_proj.weight_scale"
    scales = CheckpointReader(source).get(name).float()
    scales[3, 1] = 0.1
    edit_tensors(source, {name: scales})
    with pytest.raises(
        ConversionError, match=r"up_proj: 1 of 256 scales are not exact in awq, .* 0\.100000001, which"
    ):
        convert(source, tmp_path / "out", "awq")
    assert not list(tmp_path.glob("out*"))
    assert convert(source, tmp_path / "out", "awq", round_scales=True).rounded_scales == 1
    scales[3, 1] = 1e6  # no rounding makes that finite
    edit_tensors(source, {name: scales})
    with pytest.raises(ConversionError, match="the first 1000000"):
        convert(source, tmp_path / "infinite", "awq", round_scales=True)


def test_a_layer_split_over_two_files_is_read(packed: Callable[[Scheme], Path], tmp_path: Path) -> None:
    source = packed(SYMMETRIC)
    split = shutil.copytree(source, tmp_path / "split")
    tensors = load_file(split / WEIGHTS)
    (split / WEIGHTS).unlink()
    parts = {
        "a.safetensors": {n: t for n, t in tensors.items() if n.endswith("weight_packed")},
        "b.safetensors": {n: t for n, t in tensors.items() if not n.endswith("weight_packed")},
    }
    for file, part in parts.items():
        save_file(part, split / file, metadata={"format": "pt"})
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (split / "model.safetensors.index.json").write_text(json.dumps(index))
    convert(split, tmp_path / "out", "gptq")
    assert same(tmp_path / "out", source)


def test_a_16_bit_model_and_an_unknown_format(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="a model in 16 bits"):
        convert(tiny_llama, tmp_path / "out", "gptq")
    with pytest.raises(UnknownNameError, match=r"'gtpq'\. Did you mean 'gptq'"):
        convert(tiny_llama, tmp_path / "out", "gtpq")
    assert not list(tmp_path.glob("out*"))


def test_inspect_and_export_know_the_format(packed: Callable[[Scheme], Path], tmp_path: Path) -> None:
    source = packed(SYMMETRIC)
    convert(source, tmp_path / "awq", "awq")
    found, before = inspect_checkpoint(tmp_path / "awq"), inspect_checkpoint(source)
    assert (found.format, before.format) == ("awq", "compressed-tensors")
    assert found.parameters == before.parameters
    assert not check(tmp_path / "awq", TARGETS["h100"])


def test_the_command(packed: Callable[[Scheme], Path], tmp_path: Path) -> None:
    source = packed(SYMMETRIC)
    asked = ["convert", str(source), "--to", "gptq", "-o", str(tmp_path / "out"), "--jobs", "2", "--json"]
    result = CliRunner().invoke(build(), asked)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["source"], told["target"], told["layers"]) == ("compressed-tensors", "gptq", 14)
    again = CliRunner().invoke(build(), asked)
    assert isinstance(again.exception, QDeployError)
    assert "not empty" in str(again.exception)


@pytest.fixture
def several(tiny_llama: Path, tmp_path: Path) -> Path:
    """A checkpoint of our own in three files, of which the first holds nothing that is quantized."""
    quantize(recipe(tiny_llama, method="rtn"), tmp_path / "several")
    return tmp_path / "several"


def test_a_file_in_which_nothing_changes_is_linked(several: Path, tmp_path: Path) -> None:
    convert(several, tmp_path / "out", "gptq")
    before, after = CheckpointReader(several), CheckpointReader(tmp_path / "out")
    linked = [new.samefile(old) for new, old in zip(after.files, before.files, strict=True)]
    assert linked == [True, False, False]
    assert after.names_in(after.files[0]) == before.names_in(before.files[0])
    assert same(tmp_path / "out", several)
    manifest = load_manifest(tmp_path / "out")
    assert manifest is not None
    assert manifest.files == {file.name: sha256_file(file) for file in after.files}


def test_a_linked_file_that_was_written_to_since_is_hashed_anew(several: Path, tmp_path: Path) -> None:
    first = CheckpointReader(several).files[0]
    tensors = {name: tensor + 1 for name, tensor in load_file(first).items()}
    save_file(tensors, first, metadata={"format": "pt"})
    stamp = (several / "qdeploy.json").stat().st_mtime_ns + 1_000_000_000
    os.utime(first, ns=(stamp, stamp))
    convert(several, tmp_path / "out", "gptq")
    manifest = load_manifest(tmp_path / "out")
    assert manifest is not None
    assert manifest.files[first.name] == sha256_file(first)
    assert manifest.conversions[0].sha256 == CheckpointReader(several).sha256


def test_several_at_a_time_make_the_same_folder(several: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    for jobs in (1, 2, 5):
        convert(several, tmp_path / str(jobs) / "out", "awq", jobs=jobs)
    assert torch.get_num_threads() == threads
    files = {str(path.relative_to(tmp_path / "1")) for path in (tmp_path / "1").rglob("*") if path.is_file()}
    assert {"out/README.md", "out/SHA256SUMS", "out/qdeploy.json"} <= files
    for jobs in ("2", "5"):
        assert all((tmp_path / jobs / f).read_bytes() == (tmp_path / "1" / f).read_bytes() for f in files)


@pytest.mark.parametrize("jobs", [1, 3])
def test_what_fails_in_a_later_file_leaves_nothing(several: Path, tmp_path: Path, jobs: int) -> None:
    last = CheckpointReader(several).files[-1]
    tensors = load_file(last)
    name = next(name for name in tensors if name.endswith("up_proj.weight_scale"))
    save_file(tensors | {name: tensors[name].float() + 0.1}, last, metadata={"format": "pt"})
    with pytest.raises(ConversionError, match=r"layers\.1\.mlp\.up_proj: .* not exact in awq"):
        convert(several, tmp_path / "out", "awq", jobs=jobs)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_leaves_nothing(several: Path, tmp_path: Path, jobs: int) -> None:
    """Sent when the first file is there and others are in work."""
    program = (
        "import os, signal, sys, threading; from pathlib import Path\n"
        "from qdeploy import conversion\n"
        "from qdeploy.checkpoint.writer import ShardWriter\n"
        "write = ShardWriter.begin_shard\n"
        "once = threading.Lock()\n"
        "def interrupted(self, *rest):\n"
        "    if once.acquire(blocking=False):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return write(self, *rest)\n"
        "ShardWriter.begin_shard = interrupted\n"
        "conversion.convert(Path(sys.argv[1]), Path(sys.argv[2]), 'gptq', jobs=int(sys.argv[3]))\n"
    )
    command = [sys.executable, "-c", program, str(several), str(tmp_path / "out"), str(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "KeyboardInterrupt" in done.stderr
    assert done.returncode != 0
    assert not list(tmp_path.glob("out*"))


def test_a_folder_of_ours_says_what_it_is(several: Path, tmp_path: Path) -> None:
    (several / "README.md").write_text("---\nlicense: mit\nbase_model: org/tiny\n---\nold")
    convert(several, tmp_path / "out", "gptq")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: org/tiny\n" in card and "license: mit\n" in card
    assert "# out\n" in card and "old" not in card
    assert f"Converted from compressed-tensors (SHA-256 {CheckpointReader(several).sha256}) to gptq" in card
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path / "out", check=True)
