"""Which kernel vLLM 0.32 runs a quantized layer with, and what has none.

The tables follow vLLM 0.32.0, `vllm/model_executor/kernels/linear/`: the order of `_POSSIBLE_KERNELS` and
`_POSSIBLE_INT8_KERNELS` in `__init__.py`, each kernel's `get_min_capability` and `can_implement`, and
`prioritize_humming`, which puts Humming (in vLLM's requirements for CUDA) before Marlin on sm90. Kernels that
need a package of their own (Conch) or float16 (Exllama, always behind Marlin) are left out. All of it is what
to *expect*: what ran is in the engine's log, and `qdeploy serve` reports it.

Humming alone takes 2, 3, 5, 6 and 7 bits: https://github.com/vllm-project/vllm/pull/46389
"""

from __future__ import annotations

from dataclasses import dataclass

from qdeploy.exporters.float_kernels import FLOATS
from qdeploy.exporters.kernel import ANY, Kernel
from qdeploy.exporters.layers import FusedLayer
from qdeploy.exporters.targets import Target
from qdeploy.schemes import Scheme

VLLM = "0.32.0"
"""The version that the tables were read from."""

MARLIN_TILES = ((64, 128), (128, 64))
"""Marlin pads N and K to multiples of either pair (`marlin_padded_nk`)."""


TORCH_INT4 = "TorchInt4LinearKernel"
FOUR, FOUR_EIGHT, TWO_TO_EIGHT = frozenset({4}), frozenset({4, 8}), frozenset(range(2, 9))

WEIGHT_ONLY = (
    Kernel("MacheteLinearKernel", (90, 90), FOUR_EIGHT, FOUR_EIGHT, frozenset({None, 64, 128}), (128, 64)),
    Kernel("HummingLinearKernel", (90, 90), TWO_TO_EIGHT, TWO_TO_EIGHT),
    Kernel("MarlinLinearKernel", (75, ANY), FOUR_EIGHT, FOUR, frozenset({None, 32, 64, 128})),
    Kernel("TritonW4A16LinearKernel", (75, ANY), FOUR, FOUR, frozenset({None, 32, 64, 128, 256}), (8, 1)),
    Kernel("HummingLinearKernel", (75, ANY), TWO_TO_EIGHT, TWO_TO_EIGHT),
    Kernel("CPUWNA16LinearKernel", None, FOUR, FOUR, frozenset(), (32, 32), avx512=True),
    # qdeploy's plugin for vLLM (engines/vllm_plugin). vLLM 0.32 alone picks CPUWNA16LinearKernel here too and
    # fails at the first request: https://github.com/vllm-project/vllm/issues/55613
    Kernel(TORCH_INT4, None, FOUR, FOUR, frozenset({None, 32, 64, 128}), (16, 32), avx512=False),
)
"""Kernels for 16-bit activations, in the order in which vLLM asks them."""

EIGHT = frozenset({8})
# On sm100 and later vLLM 0.32 still picks the Cutlass kernel, which then fails at the first request:
# https://github.com/vllm-project/vllm/issues/54311
INT8 = (
    Kernel("CutlassInt8ScaledMMLinearKernel", (75, 99), EIGHT, frozenset(), frozenset({None})),
    Kernel("CPUInt8ScaledMMLinearKernel", None, EIGHT, frozenset(), frozenset({None})),
)
"""Kernels for int8 weights and activations."""

INT4_INT8 = (Kernel("Dynamic4bitLinearKernel", None, FOUR, frozenset()),)
"""For int4 weights with int8 activations: on CPUs alone."""


GROUPED = frozenset({32, 64, 128, 256})
CPU_EXPERTS = "CPU"

WEIGHT_ONLY_EXPERTS = (
    Kernel("FLASHINFER_TRTLLM", (100, 109), FOUR, frozenset(), frozenset({32})),
    # Humming comes before Marlin on sm90 and is then chosen for one scale per channel too, which it refuses.
    Kernel("HUMMING", (90, 90), FOUR_EIGHT, FOUR_EIGHT, GROUPED),
    Kernel("MARLIN", (75, 89), FOUR_EIGHT, FOUR, frozenset({None, 32, 64, 128}), (128, 1)),
    Kernel("MARLIN", (91, ANY), FOUR_EIGHT, FOUR, frozenset({None, 32, 64, 128}), (128, 1)),
    Kernel("TRITON", (75, ANY), FOUR_EIGHT, FOUR, GROUPED),
    Kernel(CPU_EXPERTS, None, FOUR, frozenset(), GROUPED - {32}, (32, 32), avx512=True),
)
"""The same for experts, by the names that vLLM gives them in its log (`using 'MARLIN' WNA16 MoE backend`).

After `fused_moe/oracle/int_wna16.py`, `compressed_tensors_moe_wna16.py` and `_supports_quant_scheme` of the
classes in `fused_moe/experts/`.
"""

INT8_EXPERTS = (
    Kernel("TRITON", (75, ANY), EIGHT, frozenset(), frozenset({None})),
    Kernel(CPU_EXPERTS, None, EIGHT, frozenset(), frozenset({None}), (32, 32), avx512=True),
)
"""After `fused_moe/oracle/int8.py`."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What vLLM is expected to do with a layer: the kernel, or the reasons why there is none."""

    kernel: str | None
    reasons: tuple[str, ...] = ()
    padded: bool = False


def choose(layer: FusedLayer, target: Target) -> Choice:
    """The first kernel of the target that takes the layer."""
    scheme = layer.scheme
    if scheme is None:
        raise ValueError(f"{layer.name} is not quantized")
    reasons = []
    for kernel in _kernels(layer, scheme):
        if kernel.runs_on(target):
            objection = kernel.objection(scheme, layer.n, layer.k)
            if objection is None:
                return Choice(kernel.name, padded=_padded(kernel, layer))
            reasons.append(f"{kernel.name}: {objection}")
    return Choice(None, tuple(reasons) or (f"vLLM {VLLM} has no {scheme.name} kernel for {target}",))


def _kernels(layer: FusedLayer, scheme: Scheme) -> tuple[Kernel, ...]:
    """The kernels for the number format, in the order in which vLLM asks them."""
    if scheme.element is not None:
        # vLLM has kernels for experts of minifloats; which of them it takes has not been read.
        return () if layer.experts else FLOATS.get(scheme.name, ())
    if scheme.activations is None:
        return WEIGHT_ONLY_EXPERTS if layer.experts else WEIGHT_ONLY
    if scheme.bits == 4:
        return () if layer.experts else INT4_INT8
    return INT8_EXPERTS if layer.experts else INT8


def _padded(kernel: Kernel, layer: FusedLayer) -> bool:
    fits = any(layer.n % n == 0 and layer.k % k == 0 for n, k in MARLIN_TILES)
    return kernel.name == "MarlinLinearKernel" and not fits
