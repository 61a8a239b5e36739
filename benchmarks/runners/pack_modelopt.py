"""Packing by ModelOpt's exporter."""

from __future__ import annotations

from modelopt.torch.export.quant_utils import to_quantized_weight
from pack_job import cases

ALGORITHMS = {
    "W4A16": "int4_awq",
    "W8A16": "int8_wo",
    "W8A8_STATIC": "int8_sq",
    "FP8_DYNAMIC": "fp8_pc_pt",
    "NVFP4A16": "w4a16_nvfp4",
    "MXFP4": "mxfp4",
}


def main() -> None:
    for case, given, found in cases():
        scales, algorithm = given["scales"], ALGORITHMS[case["name"]]
        second = 1 / given["divisor"] if "divisor" in given else None
        if case["group_size"] is None:
            scales = scales[:, 0]
        elif second is not None:
            scales = scales.to(given["weight"].dtype)
        found["weight"] = to_quantized_weight(given["weight"], scales, algorithm, second, case["group_size"])


if __name__ == "__main__":
    main()
