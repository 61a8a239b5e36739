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

from qdeploy.exporters.layers import FusedLayer
from qdeploy.exporters.targets import Target
from qdeploy.schemes import Scheme

VLLM = "0.32.0"
"""The version that the tables were read from."""

MARLIN_TILES = ((64, 128), (128, 64))
"""Marlin pads N and K to multiples of either pair (`marlin_padded_nk`)."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel class of vLLM and what it takes.

    Attributes:
        capabilities: lowest and highest CUDA compute capability (times ten); None for the CPU.
        symmetric, asymmetric: bits per weight that it takes on each grid.
        groups: group sizes, None standing for one scale per channel; the empty set for any even size.
        multiples: what N and K on one device must be multiples of.
        avx512: whether a CPU must have AVX-512 or must not; None if it does not matter.
    """

    name: str
    capabilities: tuple[int, int] | None
    symmetric: frozenset[int]
    asymmetric: frozenset[int]
    groups: frozenset[int | None] = frozenset()
    multiples: tuple[int, int] = (1, 1)
    avx512: bool | None = None

    def runs_on(self, target: Target) -> bool:
        """Whether the device has this kernel at all."""
        if self.capabilities is None:
            return target.capability is None and self.avx512 in (None, target.avx512)
        if target.capability is None:
            return False
        return self.capabilities[0] <= target.capability <= self.capabilities[1]

    def objection(self, scheme: Scheme, n: int, k: int) -> str | None:
        """Why the kernel cannot take a layer [n, k] of that scheme; None if it can."""
        bits = self.symmetric if scheme.symmetric else self.asymmetric
        if scheme.bits not in bits:
            grid = "symmetric" if scheme.symmetric else "asymmetric"
            return f"it takes no {grid} {scheme.bits}-bit weights"
        if self.groups and scheme.group_size not in self.groups:
            return f"it takes no group size {scheme.group_size or 'channel'}"
        if n % self.multiples[0]:
            return f"N = {n} is not a multiple of {self.multiples[0]}"
        if k % self.multiples[1]:
            return f"K = {k} is not a multiple of {self.multiples[1]}"
        return None


TORCH_INT4 = "TorchInt4LinearKernel"
ANY = 10**6
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
    weight_only, int8 = (WEIGHT_ONLY_EXPERTS, INT8_EXPERTS) if layer.experts else (WEIGHT_ONLY, INT8)
    for kernel in weight_only if scheme.activation_bits is None else int8:
        if kernel.runs_on(target):
            objection = kernel.objection(scheme, layer.n, layer.k)
            if objection is None:
                return Choice(kernel.name, padded=_padded(kernel, layer))
            reasons.append(f"{kernel.name}: {objection}")
    return Choice(None, tuple(reasons) or (f"vLLM {VLLM} has no {scheme.name} kernel for {target}",))


def _padded(kernel: Kernel, layer: FusedLayer) -> bool:
    fits = any(layer.n % n == 0 and layer.k % k == 0 for n, k in MARLIN_TILES)
    return kernel.name == "MarlinLinearKernel" and not fits
