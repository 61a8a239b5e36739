"""Folders in GPTQ's own format, as GPTQModel writes them, decoded to weights.

For a layer of N × K: qweight int32 [K·b/32, N] and qzeros int32 [G, N·b/32], low bits first; scales [G, N];
g_idx int32 [K], the group of each column. `gptq_v2` stores zeros as they are, `gptq` less one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from qdeploy.modeling.checkpoint import CheckpointReader

PARTS = ("qweight", "qzeros", "scales", "g_idx")


def is_gptq(reader: CheckpointReader) -> bool:
    """Whether the folder is in this format."""
    return bool(reader.config.get("quantization_config", {}).get("quant_method") == "gptq")


def gptq_state(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Parameters under the names that they have in 16 bits; quantized weights as float32 [N, K]."""
    reader = CheckpointReader(folder)
    config = reader.config["quantization_config"]
    bits, less_one = config["bits"], config.get("checkpoint_format", "gptq") == "gptq"
    for name in reader.names:
        module, _, leaf = name.rpartition(".")
        if leaf == "qweight":
            parts = [reader.get(f"{module}.{part}") for part in PARTS]
            yield f"{module}.weight", decode(*parts, bits=bits, less_one=less_one)
        elif leaf not in PARTS:
            yield name, reader.get(name)


def decode(
    qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor, *, bits: int, less_one: bool
) -> Tensor:
    """The weight float32 [N, K] of one layer: s · (q − z) with the scale and zero of each column's group."""
    codes, zeros = _unpack(qweight.T, bits), _unpack(qzeros, bits)
    if less_one:
        # As the format's kernels do: with all bits set, adding one leads to zero.
        zeros = (zeros + 1) & ((1 << bits) - 1)
    group = g_idx.long()
    return (codes - zeros.T[:, group]).float() * scales.float().T[:, group]


def _unpack(words: Tensor, bits: int) -> Tensor:
    """int32 [R, W] to codes int32 [R, 32·W/bits]."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((words.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)).flatten(1)
