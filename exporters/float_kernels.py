"""Which kernel vLLM 0.32 runs a layer of minifloats with, and what has none; see `qdeploy.exporters.kernels`.

After `_POSSIBLE_FP8_KERNELS`, `_POSSIBLE_FP8_BLOCK_KERNELS`, `_POSSIBLE_WFP8A16_KERNELS` and the same of
NVFP4, MXFP4 and MXFP8 in `kernels/linear/__init__.py`, and `is_supported` and `can_implement` of each. Below
sm89 FP8 weights run with 16-bit activations, as do NVFP4 and MXFP4 below sm100.
"""

from __future__ import annotations

from collections.abc import Mapping

from qdeploy.exporters.kernel import ANY, Kernel

FOUR, EIGHT, NONE = frozenset({4}), frozenset({8}), frozenset[int]()


def _kernel(name: str, lowest: int, highest: int = ANY, *, bits: frozenset[int] = EIGHT) -> Kernel:
    return Kernel(name, (lowest, highest), bits, NONE)


_MARLIN_FP8 = _kernel("MarlinFP8ScaledMMLinearKernel", 75)

FLOATS: Mapping[str, tuple[Kernel, ...]] = {
    "FP8_DYNAMIC": (
        _kernel("CutlassFP8ScaledMMLinearKernel", 89),
        _MARLIN_FP8,
        # With AVX-512 or without: it multiplies what it decodes.
        Kernel("ChannelWiseTorchFP8ScaledMMLinearKernel", None, EIGHT, NONE),
    ),
    # Not on CPUs: what one scale per tensor needs at load, static_scaled_fp8_quant, is not built for them.
    "FP8": (
        _kernel("FlashInferFP8ScaledMMLinearKernel", 100),
        _kernel("CutlassFP8ScaledMMLinearKernel", 89),
        _MARLIN_FP8,
    ),
    "FP8_BLOCK": (
        _kernel("DeepGemmFp8BlockScaledMMKernel", 90, 109),
        _MARLIN_FP8,
    ),
    "FP8A16": (_kernel("HummingFP8ScaledMMLinearKernel", 75), _MARLIN_FP8),
    "NVFP4": (
        _kernel("FlashInferCutlassNvFp4LinearKernel", 100, bits=FOUR),
        _kernel("MarlinNvFp4LinearKernel", 75, bits=FOUR),
    ),
    "NVFP4A16": (_kernel("MarlinNvFp4LinearKernel", 75, bits=FOUR),),
    "MXFP4": (
        _kernel("FlashInferMxFp4LinearKernel", 100, bits=FOUR),
        _kernel("MarlinMxFp4LinearKernel", 80, bits=FOUR),
    ),
    "MXFP8": (
        _kernel("FlashInferCutlassMxfp8LinearKernel", 100),
        _kernel("MarlinMxfp8LinearKernel", 75),
    ),
}
"""Preset → kernels in the order in which vLLM asks them."""
