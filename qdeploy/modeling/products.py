"""The number format that this processor multiplies fastest, for matrices of calibration data.

With AVX512-BF16 or AMX it multiplies bfloat16 two to four times as fast as float32 (two cores of an EPYC
9004: 360 against 180 GFLOP/s; of a later one: 820 against 223) and sums in float32. An engine that serves in
bfloat16 does the same; the weights of float16 and float32 checkpoints are rounded for the products alone.
What lies between the products, the residual stream above all, stays in float32; so do the weights that
methods see and the sums of Hessians over micro-batches.

Exact KL of GPTQ (SmolLM2-135M, 4 bits symmetric, group 64, default calibration, four texts, two seeds) with
linear layers in bfloat16 is 0.970 to 1.062 times that with float32 products, 1.016 on average; from seed to
seed 0.938 to 1.053 times. With Hessians from bfloat16 too (32 × 512 tokens of documentation, 14 windows of
each text) it was 0.0648 0.1751 0.1471 0.0822, with those from float32 0.0645 0.1799 0.1421 0.0799.

torch.autocast is about as fast, but its state is the thread's: from a forward that halts it would reach into
the solving of its layers. It would round attention scores and routers, too.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WITHOUT_BFLOAT16 = (
    "SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"
)  # fmt: skip
"""Values of ONEDNN_MAX_CPU_ISA, which bounds the instructions of torch's products, that leave these out."""


@cache
def multiplies_bfloat16() -> bool:
    """Whether torch has instructions of this processor, not a GPU, for products of bfloat16."""
    features = torch.cpu.get_capabilities()
    has = features.get("avx512_bf16") or features.get("amx_bf16")
    return bool(has) and os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() not in WITHOUT_BFLOAT16


def product_dtype(device: torch.device) -> torch.dtype:
    """The format that matrices of calibration data are multiplied in: bfloat16 where that is faster."""
    return torch.bfloat16 if device.type == "cpu" and multiplies_bfloat16() else torch.float32


@contextmanager
def fast_products(linears: Iterable[nn.Linear], device: torch.device) -> Iterator[None]:
    """Let these layers multiply in bfloat16 for the time of a `with`, where that is faster."""
    patched = list(linears) if product_dtype(device) == torch.bfloat16 else []
    for linear in patched:
        linear.forward = _BFloat16Product(linear)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        for linear in patched:
            linear.__dict__.pop("forward", None)


class _BFloat16Product:
    """The forward of a layer whose input, weight and output are float32; follows a change of the weight."""

    def __init__(self, linear: nn.Linear) -> None:
        self._linear = linear
        # Not the weight itself, which would then outlive its successor.
        self._source: Callable[[], Tensor | None] = lambda: None
        self._weight = torch.empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        if self._source() is not self._linear.weight:
            self._source = weakref.ref(self._linear.weight)
            self._weight = self._linear.weight.bfloat16()
        y = F.linear(x.bfloat16(), self._weight).float()
        return y if self._linear.bias is None else y.add_(self._linear.bias)
