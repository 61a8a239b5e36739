"""Packing by GPTQModel."""

from __future__ import annotations

import torch
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from pack_job import cases
from torch import nn


def main() -> None:
    for case, given, found in cases():
        n, k = given["weight"].shape
        linear = nn.Linear(k, n, bias=False)
        linear.weight.data = given["weight"]
        layer = TorchLinear(
            bits=case["bits"],
            group_size=case["group_size"],
            sym=case["symmetric"],
            desc_act=False,
            in_features=k,
            out_features=n,
            bias=False,
            pack_dtype=torch.int32,
        )
        groups = torch.arange(k, dtype=torch.int32) // case["group_size"]
        layer.pack_original(linear, given["scales"], given["zeros"].float(), groups)
        found |= {name: getattr(layer, name) for name in ("qweight", "qzeros", "scales", "g_idx")}


if __name__ == "__main__":
    main()
