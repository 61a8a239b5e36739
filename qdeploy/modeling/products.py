"""The products of linear layers, in the number format that this processor multiplies fastest.

With AVX512-BF16 or AMX it multiplies bfloat16 about twice as fast as float32 (SmolLM2-135M on two cores of an
EPYC 9004: 360 against 180 GFLOP/s) and sums in float32. An engine that serves in bfloat16 does the same; the
weights of float16 and float32 checkpoints are rounded for the products alone. What lies between the products,
the residual stream above all, stays in float32; so do the weights that methods see.

Exact KL of GPTQ (SmolLM2-135M, 4 bits symmetric, group 64, default calibration, four texts, two seeds) is
0.970 to 1.062 times that with float32 products, 1.016 on average; from seed to seed 0.938 to 1.053 times.

torch.autocast is about as fast, but its state is the thread's: from a forward that halts it would reach into
the solving of its layers. It would round attention and routers, too.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@cache
def multiplies_bfloat16() -> bool:
    """Whether this processor, not a GPU, has instructions for products of bfloat16."""
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


@contextmanager
def fast_products(linears: Iterable[nn.Linear], device: torch.device) -> Iterator[None]:
    """Let these layers multiply in bfloat16 for the time of a `with`, where that is faster."""
    patched = list(linears) if device.type == "cpu" and multiplies_bfloat16() else []
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
