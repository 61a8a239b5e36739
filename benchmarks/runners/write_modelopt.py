"""Checkpoints by ModelOpt's two exporters of whole models, with scales that it is given."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import torch
import transformers
from modelopt.torch.export import export_hf_checkpoint, export_tensorrt_llm_checkpoint
from safetensors.torch import load_file

CONFIGS = {
    "W4A16": mtq.INT4_AWQ_CFG,
    "W4A8_AWQ": mtq.W4A8_AWQ_BETA_CFG,
    "W8A16": mtq.INT8_WEIGHT_ONLY_CFG,
    "W8A8_STATIC": mtq.INT8_SMOOTHQUANT_CFG,
    "FP8": mtq.FP8_DEFAULT_CFG,
    "FP8_DYNAMIC": mtq.FP8_PER_CHANNEL_PER_TOKEN_CFG,
    "FP8_BLOCK": mtq.FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG,
    "NVFP4": mtq.NVFP4_DEFAULT_CFG,
    "NVFP4A16": mtq.W4A16_NVFP4_CFG,
    "MXFP8": mtq.MXFP8_DEFAULT_CFG,
    "MXFP4": mtq.MXFP4_DEFAULT_CFG,
}
LARGEST = {"W4A16": 7.0, "W4A8_AWQ": 7.0, "W8A16": 127.0, "W8A8_STATIC": 127.0} | dict.fromkeys(
    ("FP8", "FP8_DYNAMIC", "FP8_BLOCK"), 448.0
)
"""What a scale is multiplied by for the largest value that it stands for."""
E4M3_SCALES, EXPONENTS = ("NVFP4", "NVFP4A16"), ("MXFP8", "MXFP4")
"""Schemes whose scales ModelOpt finds in the weights."""


def main() -> None:
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    dtype = torch.float32 if job["split"] else torch.bfloat16
    model = transformers.AutoModelForCausalLM.from_pretrained(job["model"], torch_dtype=dtype)
    if job["parts"] or job["cache_scale"]:
        mtq.quantize(model, configuration(job), lambda m: m(torch.arange(16)[None]))
        scales = load_file(job["scales"])
        for name, module in model.named_modules():
            if f"{name}.scales" in scales:
                scheme = next(part["scheme"] for part in job["parts"] if part["within"] in name)
                set_scales(module, scheme, scales[f"{name}.scales"], job)
            if name.endswith("self_attn") and job["cache_scale"]:
                for quantizer in (module.k_bmm_quantizer, module.v_bmm_quantizer):
                    quantizer.amax = torch.tensor(job["cache_scale"] * 448.0)
    if job["split"]:
        export_tensorrt_llm_checkpoint(model, "llama", torch.bfloat16, job["output"], *job["split"])
    else:
        export_hf_checkpoint(model, torch.bfloat16, job["output"])


def configuration(job: dict[str, Any]) -> dict[str, Any]:
    """ModelOpt's own presets, each for the layers of its part."""
    off, *_ = mtq.FP8_DEFAULT_CFG["quant_cfg"]
    entries = [off]
    for part in job["parts"]:
        preset = copy.deepcopy(CONFIGS[part["scheme"]]["quant_cfg"])
        set_group_size(preset, part["group_size"])
        for entry in preset:
            if entry["quantizer_name"] in ("*weight_quantizer", "*input_quantizer"):
                entries.append({**entry, "quantizer_name": f"*{part['within']}{entry['quantizer_name']}"})
    entries += [{"quantizer_name": name, "enable": False} for name in ("*lm_head*", "*embed_tokens*")]
    if job["cache_scale"]:
        entries += mtq.FP8_KV_CFG["quant_cfg"]
    return {"quant_cfg": entries, "algorithm": "max"}


def set_group_size(config: Any, size: int | None) -> None:
    """Wherever the nested config has blocks along the last axis alone of 128, have them of `size`."""
    if isinstance(config, dict):
        blocks = config.get("block_sizes")
        if blocks and blocks.get(-1) == 128 and -2 not in blocks:
            blocks[-1] = size
    for value in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        set_group_size(value, size)


def set_scales(module: Any, scheme: str, scales: torch.Tensor, job: dict[str, Any]) -> None:
    weight, inputs = module.weight_quantizer, module.input_quantizer
    if scheme in EXPONENTS:
        return
    if scheme in E4M3_SCALES:
        largest = 448.0 * 6
        weight.amax = torch.tensor(largest / job["divisor"])
        if scheme == "NVFP4":
            inputs.amax = torch.tensor(largest / job["input_scale"])
        return
    if scheme == "W4A8_AWQ":
        weight, product = weight
        product.amax = torch.tensor(448.0 / job["divisor"])
    largest = LARGEST[scheme]
    found = {"FP8": scales[0, 0], "FP8_BLOCK": scales[::128]}.get(scheme, scales)
    shape = weight.amax.shape
    del weight._amax  # its dtype is the model's, in which not every largest value is exact
    weight.amax = (found * largest).reshape(shape)
    if scheme in ("FP8", "W8A8_STATIC", "W4A8_AWQ"):
        inputs.amax = torch.tensor((448.0 if scheme == "W4A8_AWQ" else largest) * job["input_scale"])
    if scheme in ("W4A16", "W4A8_AWQ", "W8A8_STATIC"):
        inputs.pre_quant_scale = torch.ones(module.weight.shape[1], dtype=module.weight.dtype)


if __name__ == "__main__":
    main()
