"""What the engine builder calls the schemes that are exported for it, and the GPUs that run them.

Sources: TensorRT-LLM, `docs/source/features/quantization.md` and, for INT8,
`docs/source/legacy/reference/support-matrix.md`; `docs/source/legacy/reference/precision.md`;
`models/convert_utils.py` (weight_only_quantize_dict).
None of it has been run by this project.
"""

from __future__ import annotations

from collections.abc import Mapping

from qdeploy.exporters.algorithms import ALGORITHMS, ANY, Runs, no_kernel
from qdeploy.exporters.targets import Target
from qdeploy.formats import modelopt
from qdeploy.schemes import PRESETS, Scheme

SMOOTH = "W8A8_SQ_PER_CHANNEL"
LEGACY: Mapping[str, Runs] = {
    name: ALGORITHMS[name] for name in ("W4A16_AWQ", "W4A8_AWQ", "FP8", "FP8_PER_CHANNEL_PER_TOKEN", "NVFP4")
} | {SMOOTH: Runs((80, ANY))}
"""Algorithm → where it runs."""

UNLISTED: Mapping[str, frozenset[str]] = {
    "MistralForCausalLM": frozenset({"NVFP4"}),
    "Qwen2ForCausalLM": frozenset({"FP8", "NVFP4"}),
}
"""Architecture → algorithms that TensorRT-LLM's matrix of models and precisions does not list for it."""

SCHEMES = "W4A16, W4A8_AWQ, W8A8_STATIC, FP8, FP8_DYNAMIC and NVFP4"
WEIGHT_ONLY = (
    "8-bit weights without rounded inputs are stored in an order that depends on the GPU, or rounded again "
    "while the engine is built"
)


def algorithm(scheme: Scheme) -> str | None:
    """What the builder calls the scheme; None for one that is not exported."""
    name = SMOOTH if scheme == PRESETS["W8A8_STATIC"] else modelopt.algorithm(scheme)
    return name if name in LEGACY else None


def objection(scheme: Scheme, n: int, k: int, target: Target) -> str | None:
    """Why no engine runs a layer [n, k] of the scheme on the device; None if one does."""
    if target.capability is None:
        return "TensorRT-LLM runs on NVIDIA GPUs alone"
    name = algorithm(scheme)
    if name is None:
        if modelopt.algorithm(scheme) == modelopt.INT8:
            return WEIGHT_ONLY
        if not scheme.symmetric:
            return "zero points are stored in an order that depends on the GPU; W4A16 goes without"
        return f"{scheme.describe()} is not exported for the engine builder, only {SCHEMES}"
    if name != SMOOTH and (reason := modelopt.refusal(scheme, n, k)):
        return reason
    return no_kernel(name, LEGACY[name], scheme, target)
