"""Whether an engine's cache can hold keys and values as a checkpoint says.

Sources: vLLM 0.32.0, `layers/quantization/compressed_tensors/compressed_tensors.py`
(CompressedTensorsKVCacheMethod), `v1/attention/backends/cpu_attn.py`, `triton_attn.py`, `flashinfer.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qdeploy.exporters.base import Finding
from qdeploy.exporters.layers import Layer
from qdeploy.exporters.targets import Target
from qdeploy.kv_cache import KEY, SCALES, VALUE, is_cache_scale, stored_scales
from qdeploy.modeling.checkpoint import CheckpointReader

OLDEST, FIRST_WITH_FP8 = 80, 89
"""Compute capabilities: below the first nothing runs FP8 caches, below the second FlashInfer alone."""

CPU_MULTIPLE = 32
"""Divides the head size of FP8 caches on a CPU."""

WITHOUT = "Quantize the model again without kv_cache"


def check_cache(reader: CheckpointReader, layers: Sequence[Layer], target: Target) -> Iterator[Finding]:
    """The cache's format is one that vLLM has there, and every attention has its scales."""
    scheme = (reader.config.get("quantization_config") or {}).get("kv_cache_scheme")
    if scheme is None:
        if any(map(is_cache_scale, reader.names)):
            yield Finding(
                "warning",
                "has scales for keys and values, but kv_cache_scheme is null: the cache stays in 16 bits",
                "Set kv_cache_scheme in config.json, or remove the scales",
            )
        return
    wanted = {"type": "float", "num_bits": 8, "symmetric": True, "strategy": "tensor"}
    if any(scheme.get(key) != value for key, value in wanted.items()):
        yield Finding("error", f"kv_cache_scheme is {scheme}; only {wanted} is supported", WITHOUT)
        return
    yield from _check_scales(reader, layers)
    yield from _check_target(reader.config, target)


def _check_scales(reader: CheckpointReader, layers: Sequence[Layer]) -> Iterator[Finding]:
    """Without a scale vLLM takes 1, where keys may be beyond 448, and values lost below 2^-9."""
    stored = stored_scales(reader)
    attentions = {layer.name.rpartition(".")[0] for layer in layers if layer.leaf in ("k_proj", "qkv_proj")}
    for module in sorted(attentions):
        scales = stored.get(module, {})
        missing = [suffix for suffix in (KEY, VALUE) if suffix not in scales]
        if missing:
            problem = f"{' and '.join(missing)} missing, for which the engine would take 1"
            yield Finding("error", problem, "Quantize the model again", module)
        for suffix in SCALES:
            scale = scales.get(suffix)
            if scale is not None and not (math.isfinite(scale) and scale > 0):
                yield Finding("error", f"{suffix} is {float(scale)}", "Quantize the model again", module)


def _check_target(config: Mapping[str, Any], target: Target) -> Iterator[Finding]:
    text = config.get("text_config") or config
    size = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    if target.capability is None:
        if not target.avx512:
            yield Finding("error", f"on {target} there is no cache in FP8, which takes AVX-512", WITHOUT)
        elif size % CPU_MULTIPLE:
            yield Finding(
                "error",
                f"heads are {size} wide; on a CPU a cache in FP8 takes multiples of {CPU_MULTIPLE}",
                WITHOUT,
            )
    elif target.capability < OLDEST:
        yield Finding("error", f"on {target} there is no cache in FP8, which takes sm{OLDEST}", WITHOUT)
    elif target.capability < FIRST_WITH_FP8:
        yield Finding(
            "warning",
            f"on {target} vLLM reads a cache in FP8 with FlashInfer alone",
            "Have flashinfer installed beside vLLM; its images bring it along",
        )
