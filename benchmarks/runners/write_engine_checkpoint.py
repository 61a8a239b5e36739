"""A checkpoint for TensorRT-LLM's engine builder by ModelOpt's exporter, with scales that it is given."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import torch
import transformers
from modelopt.torch.export import export_tensorrt_llm_checkpoint
from safetensors.torch import load_file

CONFIGS = {
    "W4A16": mtq.INT4_AWQ_CFG,
    "FP8": mtq.FP8_DEFAULT_CFG,
    "FP8_DYNAMIC": mtq.FP8_PER_CHANNEL_PER_TOKEN_CFG,
    "W8A8_STATIC": mtq.INT8_SMOOTHQUANT_CFG,
    "NVFP4": mtq.NVFP4_DEFAULT_CFG,
}
LARGEST = {"W4A16": 7.0, "FP8": 448.0, "FP8_DYNAMIC": 448.0, "W8A8_STATIC": 127.0, "NVFP4": 448.0 * 6}
"""What a scale is multiplied by for the largest value that it stands for."""


def main() -> None:
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    model = transformers.AutoModelForCausalLM.from_pretrained(job["model"], torch_dtype=torch.float32)
    if job["scheme"] is not None:
        config = copy.deepcopy(CONFIGS[job["scheme"]])
        config["algorithm"] = "max"
        set_group_size(config, job["group_size"])
        mtq.quantize(model, config, lambda m: m(torch.arange(16)[None]))
        scales = load_file(job["scales"])
        for name, module in model.named_modules():
            if f"{name}.scales" in scales:
                set_scales(module, scales[f"{name}.scales"], job)
    split = (job["tensor_parallel"], job["pipeline_parallel"])
    export_tensorrt_llm_checkpoint(model, "llama", torch.bfloat16, job["output"], *split)


def set_group_size(config: Any, size: int | None) -> None:
    """Wherever the nested config has blocks along the last axis of 128, have them of `size`."""
    if isinstance(config, dict):
        blocks = config.get("block_sizes")
        if blocks and blocks.get(-1) == 128:
            blocks[-1] = size
    for value in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        set_group_size(value, size)


def set_scales(module: Any, scales: torch.Tensor, job: dict[str, Any]) -> None:
    scheme, largest = job["scheme"], LARGEST[job["scheme"]]
    weight, inputs = module.weight_quantizer, module.input_quantizer
    if scheme == "NVFP4":
        weight.amax = torch.tensor(largest / job["divisor"])
        inputs.amax = torch.tensor(largest / job["input_scale"])
        return
    found = scales[0, 0] if scheme == "FP8" else scales
    weight.amax = (found * largest).reshape(weight.amax.shape)
    if scheme in ("FP8", "W8A8_STATIC"):
        inputs.amax = torch.tensor(largest * job["input_scale"])
    if scheme in ("W4A16", "W8A8_STATIC"):
        inputs.pre_quant_scale = torch.ones(module.weight.shape[1])


if __name__ == "__main__":
    main()
