"""Packing by GPTQModel, into either version of its format."""

from __future__ import annotations

import torch
from gptqmodel import QuantizeConfig
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module
from pack_job import cases
from torch import nn


def main() -> None:
    for case, given, found in cases():
        n, k = given["weight"].shape
        size = case["group_size"] or k
        linear = nn.Linear(k, n, bias=False)
        linear.weight.data = given["weight"]
        layer = TorchLinear(
            bits=case["bits"],
            group_size=size,
            sym=case["symmetric"],
            desc_act=False,
            in_features=k,
            out_features=n,
            bias=False,
            pack_dtype=torch.int32,
        )
        groups = torch.arange(k, dtype=torch.int32) // size
        layer.pack_original(linear, given["scales"], given["zeros"].float(), groups)
        if case["format"] == "gptq":
            convert_gptq_v2_to_v1_format_module(layer, QuantizeConfig(bits=case["bits"]))
        found |= {name: getattr(layer, name) for name in ("qweight", "qzeros", "scales", "g_idx")}


if __name__ == "__main__":
    main()
