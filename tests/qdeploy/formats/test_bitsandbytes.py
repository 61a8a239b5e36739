"""bitsandbytes' NF4 against bytes that bitsandbytes 0.50 made, and what is not read."""

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

from qdeploy.checkpoint.inspection import inspect_checkpoint
from qdeploy.conversion import convert
from qdeploy.errors import CheckpointError, ConversionError, ExportError
from qdeploy.exporters.vllm import VllmExporter
from qdeploy.formats import bitsandbytes
from qdeploy.formats.bitsandbytes import NF4, STATE
from qdeploy.formats.dequantize import dequantized_model, dequantized_state
from qdeploy.formats.packed import FORMATS
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.quantized import QuantizedLinear
from qdeploy.schemes import Scheme
from tests.packed import WEIGHTS, edit_config, edit_tensors

SCHEME = Scheme("NF4", 4, 64, element=NF4)
BYTES = (
    "04c16e29f3b05d17e29f3c05d18e2af4c16e18e3b05d17e29f3b05d18e2af4c1"
    "6d18e3b04c17e29f3b05d17e2af4c06d18e2a04c16e29f3b05d17e29f3c05d18"
)
"""Of `quantize_4bit`: two rows of ((37·i mod 101) − 50)/50 for i of 0 … 127, the second row divided by 4."""


def state(**changes: Any) -> Tensor:
    fields = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [2, 64]} | changes
    return torch.tensor(list(json.dumps(fields).encode()), dtype=torch.uint8)


def stored() -> dict[str, Tensor]:
    return {
        "weight": torch.tensor(list(bytes.fromhex(BYTES)), dtype=torch.uint8)[:, None],
        "weight.absmax": torch.tensor([1.0, 0.25]),
        "weight.quant_map": torch.tensor(NF4.numbers),
        STATE: state(),
    }


def test_weights_match_the_known_answer() -> None:
    q = bitsandbytes.unpack(stored(), SCHEME)
    assert q.shape == (2, 64)
    expected = [
        [-1.0, -0.28444138169288635, 0.44070982933044434, -0.6961928009986877, -0.09105003625154495],
        [-0.022762509062886238, 0.14065425097942352, -0.17404820024967194, 0.019895074889063835],
    ]
    for row, numbers in zip(q.dequantize(), expected, strict=True):
        assert torch.equal(row[: len(numbers)], torch.tensor(numbers))
    whole = (torch.arange(128) * 37 % 101).float().sub(50).div(50).reshape(2, 64) * torch.tensor(
        [[1], [0.25]]
    )
    assert (q.dequantize() - whole).abs().max() < 0.16  # half of the widest gap, −1 to −0.696


def test_bytes_may_be_kept_in_another_dtype() -> None:
    tensors = stored()
    same = bitsandbytes.unpack(
        tensors | {"weight": tensors["weight"].view(32, 2).view(torch.bfloat16)}, SCHEME
    )
    assert torch.equal(same.codes, bitsandbytes.unpack(tensors, SCHEME).codes)


def test_scales_may_be_quantized_themselves() -> None:
    generator = torch.Generator().manual_seed(0)
    table, factors = torch.rand(256, generator=generator), torch.tensor([2.0, 3.0, 5.0])
    codes = torch.randint(0, 256, (10,), generator=generator, dtype=torch.uint8)
    tensors = {
        "weight": torch.zeros(320, 1, dtype=torch.uint8),
        "weight.absmax": codes,
        "weight.quant_map": torch.tensor(NF4.numbers),
        "weight.nested_absmax": factors,
        "weight.nested_quant_map": table,
        STATE: state(shape=[5, 128], nested_blocksize=4, nested_dtype="float32", nested_offset=0.5),
    }
    found = bitsandbytes.unpack(tensors, SCHEME).scales.flatten().tolist()
    each = [table[code] * factors[i // 4] + 0.5 for i, code in enumerate(codes.int().tolist())]
    assert found == torch.stack(each).tolist()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({STATE: None}, "tensor weight.quant_state.bitsandbytes__nf4 is missing"),
        ({STATE: torch.tensor([123], dtype=torch.uint8)}, "its quant_state cannot be parsed"),
        ({STATE: state(shape=[4, 32])}, "blocks of 64 weights run from one row of 32 into the next, of 4"),
        ({STATE: state(shape=[4, 64])}, "weight has 64 bytes, expected 128"),
        ({"weight.absmax": torch.ones(3)}, r"absmax has shape \[3\], expected \[2\]"),
        ({"weight.quant_map": torch.linspace(-1, 1, 16)}, "other numbers than those of NF4"),
        (
            {"weight.absmax": torch.zeros(2, dtype=torch.uint8), "weight.nested_absmax": torch.ones(1)},
            "tensor weight.nested_quant_map is missing",
        ),
    ],
)
def test_damage_is_told(changes: dict[str, Tensor | None], told: str) -> None:
    tensors = {name: t for name, t in (stored() | changes).items() if t is not None}
    with pytest.raises(CheckpointError, match=told):
        bitsandbytes.unpack(tensors, SCHEME)


@pytest.fixture
def folder(tiny_model: Callable[[str], Path], tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A tiny Llama with the layers that read 64 columns or 128 in NF4, and their weights."""
    target = tmp_path / "nf4"
    shutil.copytree(tiny_model("llama"), target)
    tensors, weights = load_file(target / WEIGHTS), {}
    for name, weight in list(tensors.items()):
        if name.endswith("_proj.weight"):
            blocks = weight.float().reshape(-1, 64)
            scales = blocks.abs().amax(1)
            codes = (blocks / scales[:, None])[..., None].sub(torch.tensor(NF4.numbers)).abs().argmin(-1)
            codes = codes.to(torch.uint8).reshape(weight.shape)
            q = QuantizedLinear(codes, scales.reshape(len(weight), -1), None, SCHEME)
            weights[name] = q.dequantize()
            pairs = codes.flatten().view(-1, 2)
            tensors[name] = (pairs[:, 0] << 4 | pairs[:, 1])[:, None]
            tensors |= {f"{name}.absmax": scales, f"{name}.quant_map": torch.tensor(NF4.numbers)}
            tensors[f"{name}.quant_state.bitsandbytes__nf4"] = state(shape=list(weight.shape))
    save_file({name: t.contiguous() for name, t in tensors.items()}, target / WEIGHTS)
    block = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    edit_config(target / "config.json", target / "config.json", quantization_config=block)
    return target, weights


def test_a_folder_is_inspected_and_decoded(folder: tuple[Path, dict[str, Tensor]]) -> None:
    path, weights = folder
    found = inspect_checkpoint(path)
    assert (found.format, found.served_by) == ("bitsandbytes", ["transformers with bitsandbytes"])
    (use,) = found.schemes
    assert (use.scheme, use.modules, use.weights) == (
        "NF4 nf4, group 64",
        14,
        sum(w.numel() for w in weights.values()),
    )
    assert 4.5 < use.bits_per_weight < 4.9  # 4 + 32/64, and what small layers pay for tables and JSON
    state = dict(dequantized_state(path))
    assert all(torch.equal(state[name], weight) for name, weight in weights.items())
    assert not any("absmax" in name or "quant_" in name for name in state)
    assert dequantized_model(path)(torch.arange(8)[None]).logits.isfinite().all()


def test_no_format_holds_it(folder: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    for name in FORMATS:
        with pytest.raises(ConversionError, match=r"cannot hold 14 of 14 layers.* Stay with bitsandbytes\."):
            convert(folder[0], tmp_path / "out", name)
    assert not list(tmp_path.glob("out*"))


def test_vllm_gets_it_dequantized_if_asked(folder: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    path, weights = folder
    with pytest.raises(ExportError, match="it has no bitsandbytes"):
        VllmExporter().export(path, tmp_path / "no", gpu="h100")
    report = VllmExporter().export(path, tmp_path / "yes", gpu="h100", reference=True)
    (finding,) = (finding for finding in report.findings if finding.code == "QD610")
    assert "14 layers are dequantized to 16 bits: vLLM 0.32.0 has no NF4 kernel" in finding.problem
    found = CheckpointReader(tmp_path / "yes")
    assert "quantization_config" not in found.config
    assert all(torch.equal(found.get(name), weight.bfloat16()) for name, weight in weights.items())
    assert not any("absmax" in name for name in found.names)


@pytest.mark.parametrize(
    ("block", "told"),
    [({"load_in_8bit": True}, "by bitsandbytes as int8; only nf4"), ({}, "by bitsandbytes as fp4; only nf4")],
)
def test_other_kinds_are_refused(
    folder: tuple[Path, dict[str, Tensor]], block: dict[str, Any], told: str
) -> None:
    path, _ = folder
    edit_config(
        path / "config.json",
        path / "config.json",
        quantization_config={"quant_method": "bitsandbytes"} | block,
    )
    with pytest.raises(CheckpointError, match=told):
        inspect_checkpoint(path)


def test_a_damaged_quant_state_names_its_layer(folder: tuple[Path, dict[str, Tensor]]) -> None:
    path, _ = folder
    module = "model.layers.0.mlp.up_proj"
    edit_tensors(path, {f"{module}.{STATE}": torch.tensor([1], dtype=torch.uint8)})
    with pytest.raises(
        CheckpointError, match=rf"{module} in .* is damaged: its quant_state cannot be parsed"
    ):
        inspect_checkpoint(path)
