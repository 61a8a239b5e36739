"""Packing by compressed-tensors' own compressors, by the config group that our folders have."""

from __future__ import annotations

import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from pack_job import cases


def main() -> None:
    for case, given, found in cases():
        scheme = QuantizationScheme.model_validate(case["group"])
        # What scales are rounded to they are exact in; exponents are made of floats.
        state = {"weight": given["weight"], "weight_scale": given["stored"].bfloat16()}
        if not case["symmetric"]:
            state["weight_zero_point"] = (given["zeros"].short() - 2 ** (case["bits"] - 1)).to(torch.int8)
        if "divisor" in given:
            state["weight_global_scale"] = given["divisor"]
        compressor = BaseCompressor.get_value_from_registry(case["group"]["format"])
        found |= compressor.compress(state, scheme)


if __name__ == "__main__":
    main()
