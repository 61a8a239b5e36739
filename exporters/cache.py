"""Whether an engine's cache can hold keys and values as a checkpoint says.

Sources: vLLM 0.32.0, `layers/quantization/compressed_tensors/compressed_tensors.py`
(CompressedTensorsKVCacheMethod), `v1/attention/backends/cpu_attn.py`, `triton_attn.py`, `flashinfer.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from qdeploy.errors import CheckpointError
from qdeploy.exporters.base import Finding
from qdeploy.exporters.lint.rule import rule
from qdeploy.exporters.lint.subject import Subject
from qdeploy.exporters.targets import Target
from qdeploy.formats.packed import has_cache_in_fp8
from qdeploy.kv_cache import KEY, SCALES, VALUE, is_cache_scale, stored_scales

OLDEST, FIRST_WITH_FP8 = 80, 89
"""Compute capabilities: below the first nothing runs FP8 caches, below the second FlashInfer alone."""

CPU_MULTIPLE = 32
"""Divides the head size of FP8 caches on a CPU."""

WITHOUT = "Quantize the model again without kv_cache"
AGAIN = "Quantize the model again"

UNUSED = rule(
    "QD409",
    "warning",
    "Scales for keys and values that no config asks for",
    """Engines keep the cache in 16 bits unless `kv_cache_scheme` (ModelOpt: `kv_cache_quant_algo`) says
    otherwise, whatever scales are there.""",
)
OTHER_CACHE = rule(
    "QD410",
    "error",
    "A cache in a format that engines do not have",
    "vLLM takes E4M3 with one scale for an attention, or one for each of its heads in compressed-tensors.",
)
NO_SCALE = rule(
    "QD411",
    "error",
    "A cache in FP8 without its scales",
    """For scales that are missing engines take 1. Keys beyond 448 are then cut off, and values below 2^-9
    lost. Zero, infinite or negative scales are no better.""",
)
NO_CACHE_IN_FP8 = rule(
    "QD604",
    "error",
    "The device has no cache in FP8",
    "GPUs before sm80 have none, nor have CPUs without AVX-512; on CPUs heads must be multiples of 32 wide.",
)
FLASHINFER = rule(
    "QD605",
    "warning",
    "A cache in FP8 that only FlashInfer reads",
    "Between sm80 and sm88 vLLM has one attention for it, which is a package of its own.",
)


def check_cache(subject: Subject) -> Iterator[Finding]:
    """The cache's format is one that engines have, and every attention has its scales."""
    scheme: Mapping[str, Any] = subject.block.get("kv_cache_scheme") or {}
    try:
        asked = has_cache_in_fp8(subject.block)
    except CheckpointError as error:
        yield OTHER_CACHE(str(error).rstrip("."), WITHOUT)
        return
    if not asked:
        if any(map(is_cache_scale, subject.reader.names)):
            yield UNUSED(
                "has scales for keys and values, but kv_cache_scheme is null: the cache stays in 16 bits",
                "Set kv_cache_scheme in config.json, or remove the scales",
            )
        return
    wanted = {"type": "float", "num_bits": 8, "symmetric": True, "strategy": "tensor"}
    if subject.format == "compressed-tensors" and any(scheme.get(k) != v for k, v in wanted.items()):
        yield OTHER_CACHE(f"kv_cache_scheme is {scheme}; only {wanted} is supported", WITHOUT)
        return
    yield from _check_scales(subject)


def _check_scales(subject: Subject) -> Iterator[Finding]:
    stored = stored_scales(subject.reader)
    attentions = {layer.parent for layer in subject.layers if layer.leaf in ("k_proj", "qkv_proj")}
    for module in sorted(attentions):
        scales = stored.get(module, {})
        missing = [suffix for suffix in (KEY, VALUE) if suffix not in scales]
        if missing:
            problem = f"{' and '.join(missing)} missing, for which the engine would take 1"
            yield NO_SCALE(problem, AGAIN, module)
        for suffix in SCALES:
            scale = scales.get(suffix)
            if scale is not None and not (math.isfinite(scale) and scale > 0):
                yield NO_SCALE(f"{suffix} is {float(scale)}", AGAIN, module)


def check_cache_target(config: Mapping[str, Any], target: Target) -> Iterator[Finding]:
    """vLLM has a cache in FP8 on the device."""
    text = config.get("text_config") or config
    size = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    if target.capability is None:
        if not target.avx512:
            yield NO_CACHE_IN_FP8(f"on {target} there is no cache in FP8, which takes AVX-512", WITHOUT)
        elif size % CPU_MULTIPLE:
            yield NO_CACHE_IN_FP8(
                f"heads are {size} wide; on a CPU a cache in FP8 takes multiples of {CPU_MULTIPLE}", WITHOUT
            )
    elif target.capability < OLDEST:
        yield NO_CACHE_IN_FP8(f"on {target} there is no cache in FP8, which takes sm{OLDEST}", WITHOUT)
    elif target.capability < FIRST_WITH_FP8:
        yield FLASHINFER(
            f"on {target} vLLM reads a cache in FP8 with FlashInfer alone",
            "Have flashinfer installed beside vLLM; its images bring it along",
        )
