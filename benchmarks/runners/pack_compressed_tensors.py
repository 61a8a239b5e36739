"""Packing by compressed-tensors' own compressors."""

from __future__ import annotations

import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, preset_name_to_scheme
from pack_job import cases

FORMATS = {"W8A8": "int-quantized", "FP8_DYNAMIC": "float-quantized", "NVFP4A16": "nvfp4-pack-quantized"}


def main() -> None:
    for case, given, found in cases():
        state = {"weight": given["weight"], "weight_scale": given["scales"].bfloat16()}
        if case["name"]:
            scheme = preset_name_to_scheme(case["name"], ["Linear"])
        else:
            weights = QuantizationArgs(
                num_bits=case["bits"],
                strategy="group",
                group_size=case["group_size"],
                symmetric=case["symmetric"],
            )
            scheme = QuantizationScheme(targets=["Linear"], weights=weights)
            if not case["symmetric"]:
                state["weight_zero_point"] = (given["zeros"].short() - 2 ** (case["bits"] - 1)).to(torch.int8)
        if "divisor" in given:
            state["weight_global_scale"] = given["divisor"]
        compressor = BaseCompressor.get_value_from_registry(FORMATS.get(case["name"], "pack-quantized"))
        found |= compressor.compress(state, scheme)


if __name__ == "__main__":
    main()
