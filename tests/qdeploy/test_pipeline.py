"""The walk from a 16-bit folder to a packed one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from qdeploy import pipeline, stack, walk
from qdeploy.calibration.tokenizer import load_tokenizer
from qdeploy.checkpoint.manifest import load_manifest
from qdeploy.errors import CalibrationError, CheckpointError, Interrupted, OutputError, UsageError
from qdeploy.fingerprint import fingerprint
from qdeploy.formats.compressed_tensors import module_schemes, unpack
from qdeploy.memory import Budget
from qdeploy.methods.gptq import GPTQ
from qdeploy.modeling import activations, products, residual
from qdeploy.modeling.activations import Activations, footprint
from qdeploy.modeling.blocks import find_blocks
from qdeploy.modeling.checkpoint import SINGLE, CheckpointReader
from qdeploy.modeling.experts import split_experts
from qdeploy.modeling.followed import EVERY, states_together
from qdeploy.modeling.inputs import BlockCall
from qdeploy.modeling.skeleton import build_skeleton, materialize
from qdeploy.pipeline import quantize
from qdeploy.planned import Planned
from qdeploy.recipe import Recipe
from qdeploy.schemes import Scheme
from tests.qdeploy.test_estimate import corrected, estimated

CALIBRATION = {"samples": 4, "sequence_length": 32}


def recipe(model: Path, **flags: Any) -> Recipe:
    return Recipe.from_flags(str(model), **({"group_size": "32", "calibration": CALIBRATION} | flags))


def all_tensors(folder: Path) -> dict[str, Tensor]:
    reader = CheckpointReader(folder)
    return {name: reader.get(name) for name in reader.names}


def unpacked(folder: Path) -> dict[str, Any]:
    """Module name → its QuantizedLinear, read back from the files."""
    reader = CheckpointReader(folder)
    return {
        name: unpack(
            {
                key.removeprefix(f"{name}."): reader.get(key)
                for key in reader.names
                if key.startswith(f"{name}.")
            },
            scheme,
        )
        for name, scheme in module_schemes(reader.config, reader).items()
    }


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_every_other_tensor_keeps_its_bytes(tiny_family: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    quantize(recipe(tiny_family, method="rtn"), output)
    source, written = all_tensors(tiny_family), all_tensors(output)
    weights = {f"{name}.weight" for name in unpacked(output)}
    assert len(weights) >= 8
    assert not any("lm_head" in name for name in weights)
    kept = source.keys() - weights
    assert kept == {name for name in written if name.rpartition(".")[2] in ("weight", "bias")}
    for name in kept:
        assert written[name].dtype == source[name].dtype
        assert torch.equal(written[name], source[name])


def test_a_recipe_for_one_layer_changes_nothing_else(tiny_llama: Path, tmp_path: Path) -> None:
    only, output = "model.layers.1.mlp.down_proj", tmp_path / "out"
    rules = [{"match": only, "scheme": "W8A16", "stages": ["rtn"]}]
    rules[0]["scheme"] = {"bits": 8, "group": 32}
    manifest = quantize(Recipe.model_validate({"model": str(tiny_llama), "rules": rules}), output)
    assert [module["name"] for module in manifest["modules"]] == [only]
    assert manifest["calibration"] is None

    tokens = torch.arange(20)[None]
    loaded = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
    expected = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    assert not torch.equal(loaded(tokens).logits, expected(tokens).logits)
    expected.get_submodule(only).weight.data = unpacked(output)[only].dequantize()
    torch.testing.assert_close(loaded(tokens).logits, expected(tokens).logits)


def test_eight_bits_keep_the_logits(tiny_family: Path, tmp_path: Path) -> None:
    quantize(recipe(tiny_family, scheme="W8A16", method="rtn"), tmp_path / "out")
    tokens = torch.arange(20)[None]
    expected = AutoModelForCausalLM.from_pretrained(tiny_family, dtype=torch.float32)
    before = expected(tokens).logits
    split_experts(expected)
    for name, layer in unpacked(tmp_path / "out").items():
        expected.get_submodule(name).weight.data = layer.dequantize()
    after = expected(tokens).logits
    assert 0 < (after - before).norm() / before.norm() < 0.05


@pytest.mark.parametrize("true_sequential", [True, False])
def test_each_layer_is_solved_on_what_it_will_read(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, true_sequential: bool
) -> None:
    """The recorded error is that of the layer fed by the quantized layers before it."""
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda: False)  # the model below is float32
    folder, output = tiny_model("qwen2"), tmp_path / "out"
    asked = corrected(recipe(folder), 0.0).model_copy(update={"true_sequential": true_sequential})
    manifest = quantize(asked, output)
    tokens = pipeline.load_calibration(asked.calibration, load_tokenizer(folder)).tokens
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    layers = unpacked(output)
    recorded = {module["name"]: module["relative_error"] for module in manifest["modules"]}
    groups = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    for block in range(2):
        names = {n.rpartition(".")[2]: n for n in layers if n.startswith(f"model.layers.{block}.")}
        steps = groups if true_sequential else [[leaf for group in groups for leaf in group]]
        for step in steps:
            for leaf in step:
                error = layer_error(model, names[leaf], layers[names[leaf]].dequantize(), tokens)
                assert recorded[names[leaf]] == pytest.approx(error, rel=1e-3)
            for leaf in step:
                model.get_submodule(names[leaf]).weight.data = layers[names[leaf]].dequantize()


@torch.no_grad()
def layer_error(model: Any, name: str, quantized: Tensor, tokens: Tensor) -> float:
    """‖(W − Ŵ)X‖² / ‖WX‖² with the X that the layer reads in `model` as it is."""
    inputs: list[Tensor] = []
    layer = model.get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    model(tokens, use_cache=False)
    handle.remove()
    lost = (inputs[0] @ (layer.weight - quantized).T).square().sum()
    return float(lost / (inputs[0] @ layer.weight.T).square().sum())


@pytest.mark.parametrize(("scheme", "group"), [("W4A16", "32"), ("W8A8", "channel")])
def test_no_budget_changes_a_byte(
    scheme: str, group: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(tiny_llama, scheme=scheme, group_size=group)
    monkeypatch.setattr(activations, "BATCH_TOKENS", 32)
    shape = (4, 32, 64)
    one = footprint([64, 128], shape)
    # All four micro-batches halt; two do; none does, and the hidden states are on the disk.
    states = states_together(shape, EVERY)
    solving = estimated(asked).solving
    assert solving > one.running
    budgets = [10**9, states + solving + 2 * one.halted, one.running]
    rooms = [Budget(size).inside(states if i < 2 else 0) for i, size in enumerate(budgets)]
    assert [one.halting(4, room, solving) for room in rooms] == [4, 2, 0]
    assert [states <= Budget(size).states for size in budgets] == [True, True, False]
    written = []
    for size in budgets:
        manifest = quantize(asked, tmp_path / str(size), limits=Budget(size), force=True)
        assert manifest["recipe_sha256"] == asked.sha256()
        written.append(shard_bytes(tmp_path / str(size)))
    assert written[0] == written[1] == written[2]


def test_what_ran_again_leaves_no_states_behind(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no memory to wait in, what is kept of one micro-batch's stream goes before the next one runs."""
    monkeypatch.setattr(activations, "BATCH_TOKENS", 32)
    kept: list[int] = []

    class Watched(residual.Targets):
        def at(self, batch: slice) -> None:
            super().at(batch)
            kept.append(len(self._before))

    monkeypatch.setattr(walk, "Targets", Watched)
    quantize(recipe(tiny_llama), tmp_path / "out", limits=Budget(1), force=True)
    assert len(kept) >= 4 * 4 * 2  # micro-batches, groups, blocks
    assert max(kept) == 0


def test_a_layer_that_never_runs_is_rounded_and_reported(tiny_llama: Path) -> None:
    reader = CheckpointReader(tiny_llama)
    model = build_skeleton(reader)
    block = find_blocks(model)[0]
    block.module.add_module("idle", torch.nn.Linear(64, 64))
    materialize(model, [n for n in block.parameters if "idle" not in n], reader, torch.device("cpu"))
    states = Activations((2, 8, 64), tiny_llama, Budget(10**9))
    states[:] = torch.randn(2, 8, 64)
    angles = torch.randn(1, 8, 16)
    call = BlockCall(block, (), {"position_embeddings": (angles.cos(), angles.sin()), "attention_mask": None})
    plan = {f"{block.name}.idle": Planned(Scheme("W4A16", 4, 32), GPTQ())}
    solved = walk.quantize_with_data(call, states, plan, true_sequential=True, outputs=True)
    assert "no calibration token" in str(solved.layers[f"{block.name}.idle"].solution.fallback)


def test_the_manifest_holds_what_was_done(tiny_llama: Path, tmp_path: Path) -> None:
    asked, output = recipe(tiny_llama), tmp_path / "out"
    returned = quantize(asked, output)
    manifest = load_manifest(output)
    assert manifest is not None
    assert manifest.model_dump(mode="json", exclude={"files"}) == {
        key: value for key, value in returned.items() if key != "files"
    }
    assert manifest.recipe_sha256 == asked.sha256()
    products_in = "bfloat16" if products.multiplies_bfloat16() else "float32"
    assert (manifest.provenance["processes"], manifest.provenance["products"]) == (1, products_in)
    assert manifest.calibration is not None
    assert manifest.calibration.samples == 4
    assert manifest.model.sha256 == CheckpointReader(tiny_llama).sha256
    assert manifest.model.parameters == sum(t.numel() for t in load_file(tiny_llama / SINGLE).values())
    assert 0 < manifest.totals.output_bytes < manifest.totals.source_bytes
    assert set(manifest.totals.split) == {
        "load",
        "reference",
        "forward",
        "hessian",
        "solve",
        "pack",
        "write",
    }
    assert sum(manifest.totals.split.values()) < manifest.totals.seconds + 0.05  # seconds are rounded
    layers = unpacked(output)
    assert {module.name for module in manifest.modules} == set(layers)
    for module in manifest.modules:
        assert module.method == "gptq"
        assert module.fallback is None
        assert module.fingerprint == fingerprint(layers[module.name])


def test_poor_calibration_is_told_and_recorded(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text [a].txt"
    text.write_text("the same again and again. " * 100)
    manifest = quantize(recipe(tiny_llama, calibration=CALIBRATION | {"source": str(text)}), tmp_path / "out")
    few, short, one_sided = manifest["warnings"]
    assert "128 calibration tokens are few for the 128 input columns of model.layers.0.mlp.down_proj" in few
    assert "32 tokens are short" in short
    assert "text [a].txt" in one_sided
    told = capsys.readouterr().err
    assert [line for line in told.splitlines() if line.startswith("Warning:")] == [
        f"Warning: {warning}" for warning in manifest["warnings"]
    ]


def test_methods_that_see_no_data_are_not_warned_about_it(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = quantize(recipe(tiny_llama, method="rtn"), tmp_path / "out")
    assert manifest["warnings"] == []
    assert "Warning" not in capsys.readouterr().err


@pytest.mark.parametrize("scheme", ["W2A16", "W2A16_ASYM", "W3A16", "W3A16_ASYM"])
def test_few_bits_are_read_back_and_gptq_loses_less_than_rounding(
    tiny_llama: Path, tmp_path: Path, scheme: str
) -> None:
    errors = {}
    for method in ("gptq", "rtn"):
        output = tmp_path / method
        quantize(recipe(tiny_llama, scheme=scheme, method=method), output)
        errors[method] = output_error(tiny_llama, unpacked(output))
    assert errors["gptq"] < errors["rtn"]


@torch.no_grad()
def output_error(folder: Path, layers: dict[str, Any]) -> float:
    """How far the calibration text's logits move when the model takes the quantized weights."""
    tokens = pipeline.load_calibration(recipe(folder).calibration, load_tokenizer(folder)).tokens
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before = model(tokens).logits
    for name, layer in layers.items():
        model.get_submodule(name).weight.data = layer.dequantize()
    return float((model(tokens).logits - before).norm())


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_an_interrupted_run_resumes_to_the_same_bytes(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    quantize(recipe(tiny_llama, method=method), tmp_path / "whole")

    with monkeypatch.context() as patch:
        interrupt_at(patch, layer=10)
        with pytest.raises(Interrupted, match="after 1 of 2 blocks") as raised:
            quantize(recipe(tiny_llama, method=method), tmp_path / "out")
    assert raised.value.exit_code == 130
    assert not (tmp_path / "out").exists()

    quantize(recipe(tiny_llama, method=method), tmp_path / "out")
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


def interrupt_at(patch: pytest.MonkeyPatch, layer: int) -> None:
    """Press Ctrl-C while the given layer is packed."""
    packed: list[object] = []

    def pack(q: Any) -> dict[str, Tensor]:
        packed.append(q)
        if len(packed) == layer:
            raise KeyboardInterrupt
        return original(q)

    original = stack.pack
    patch.setattr(stack, "pack", pack)


def test_another_recipe_does_not_resume(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        interrupt_at(patch, layer=10)
        with pytest.raises(Interrupted):
            quantize(recipe(tiny_llama, method="rtn"), output)
    with pytest.raises(OutputError, match=r"out\.partial holds 2 shards .*: true → false\..*--restart"):
        quantize(recipe(tiny_llama, method="rtn", symmetric=False), output)
    quantize(recipe(tiny_llama, method="rtn", symmetric=False), output, restart=True)
    assert unpacked(output)["model.layers.0.mlp.up_proj"].zeros is not None


def test_bad_input_leaves_no_output(tiny_llama: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(UsageError, match="Group size 48 does not divide 14 of 14 layers"):
        quantize(recipe(tiny_llama, group_size="48"), output)
    with pytest.raises(CalibrationError, match="samples"):
        quantize(recipe(tiny_llama, calibration={"samples": 10**6, "sequence_length": 8}), output)
    assert not output.exists()


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_damaged_weight_ends_the_run(tiny_llama: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "broken")
    tensors = load_file(folder / SINGLE)
    tensors[name].view(-1)[0] = torch.nan
    save_file(tensors, folder / SINGLE)
    with pytest.raises(CheckpointError, match=f"{name} in .* holds 1 NaN"):
        quantize(recipe(folder, method="rtn"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_tokenizer_cannot_be_calibrated(tiny_llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "mute")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="no tokenizer"):
        quantize(recipe(folder), tmp_path / "out")
    quantize(recipe(folder, method="rtn"), tmp_path / "out")
