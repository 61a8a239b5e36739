"""GPTQ's own format, read as GPTQModel writes it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.gptq_folder import decode, gptq_state, is_gptq
from qdeploy.files import read_json, write_json
from qdeploy.modeling.checkpoint import CheckpointReader

N, K, GROUP = 16, 64, 32


def packed(codes: Tensor) -> Tensor:
    """int64 [R, C] of 4 bits to int32 [R, C/8], low bits first."""
    words = (codes.view(len(codes), -1, 8) << torch.arange(0, 32, 4)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


@pytest.mark.parametrize("less_one", [True, False])
def test_codes_zeros_and_column_groups_are_read(less_one: bool) -> None:
    torch.manual_seed(0)
    codes, zeros = torch.randint(16, (N, K)), torch.randint(16, (N, K // GROUP))
    scales = torch.rand(K // GROUP, N).half()
    group = torch.randperm(K) % (K // GROUP)
    stored = (zeros - 1) % 16 if less_one else zeros
    tensors = packed(codes.T.contiguous().T).T.contiguous(), packed(stored.T.contiguous()), scales
    expected = (codes - zeros[:, group]) * scales.float().T[:, group]
    found = decode(*tensors, group.int(), bits=4, less_one=less_one)
    assert torch.equal(found, expected)


def test_a_folder_is_read_under_its_16_bit_names(tiny_llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "gptq")
    assert not is_gptq(CheckpointReader(folder))
    tensors = load_file(folder / "model.safetensors")
    module = "model.layers.0.self_attn.o_proj"
    k = tensors.pop(f"{module}.weight").shape[1]
    tensors[f"{module}.qweight"] = torch.full((k // 8, k), 0x11111111, dtype=torch.int32)
    tensors[f"{module}.qzeros"] = torch.full((1, k // 8), 0x77777777, dtype=torch.int32)
    tensors[f"{module}.scales"] = torch.full((1, k), 0.5, dtype=torch.float16)
    tensors[f"{module}.g_idx"] = torch.zeros(k, dtype=torch.int32)
    save_file(tensors, folder / "model.safetensors")
    quantization = {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq"}
    config = read_json(folder / "config.json") | {"quantization_config": quantization}
    write_json(folder / "config.json", config)
    assert is_gptq(CheckpointReader(folder))
    state = dict(gptq_state(folder))
    assert state.keys() == set(CheckpointReader(tiny_llama).names)
    assert torch.equal(state[f"{module}.weight"], torch.full((k, k), 0.5 * (1 - 8)))
