"""What TensorRT-LLM runs of ModelOpt's algorithms, and where.

Sources: TensorRT-LLM's docs/source/features/quantization.md (compute capabilities),
`_torch/modules/linear.py` (tensors that each algorithm reads) and `fpA_intB_gemm_template.h` (group sizes),
as of 2025 and 2026. None of it has been run by this project.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qdeploy.exporters.targets import Target
from qdeploy.formats.modelopt import algorithm, refusal
from qdeploy.schemes import Scheme

TENSORRT_LLM = "1.2.1"
"""The release that launch files name."""

CACHE_IN_FP8 = 80
"""The least compute capability for keys and values in FP8."""


@dataclass(frozen=True, slots=True)
class Runs:
    """Where an algorithm runs.

    Attributes:
        capabilities: lowest and highest compute capability times ten.
        group_sizes: those that its kernel takes; empty for any.
        released: whether a release has it; if not, the main branch alone.
    """

    capabilities: tuple[int, int]
    group_sizes: frozenset[int] = frozenset()
    released: bool = True


ANY = 10_000
ALGORITHMS: Mapping[str, Runs] = {
    "W4A16_AWQ": Runs((80, 90), frozenset({64, 128})),
    "W4A8_AWQ": Runs((89, 90), frozenset({128})),
    "W8A16": Runs((80, 90)),
    "FP8": Runs((89, ANY)),
    "FP8_PER_CHANNEL_PER_TOKEN": Runs((90, 90)),
    "fp8_pb_wo": Runs((90, 109)),
    "NVFP4": Runs((100, ANY)),
    "W4A16_NVFP4": Runs((100, ANY), released=False),
    "MXFP8": Runs((100, ANY), released=False),
}
"""Algorithm → where it runs; of those that are not here the loader knows nothing. W4A8_AWQ's groups are those
of ModelOpt's own preset."""


def objection(scheme: Scheme, n: int, k: int, target: Target) -> str | None:
    """Why TensorRT-LLM cannot run a layer [n, k] of the scheme on the device; None if it can."""
    if target.capability is None:
        return "TensorRT-LLM runs on NVIDIA GPUs alone"
    reason = refusal(scheme, n, k)
    if reason is not None:
        return reason
    name = str(algorithm(scheme))
    runs = ALGORITHMS.get(name)
    if runs is None:
        return f"TensorRT-LLM does not load ModelOpt's {name}"
    return no_kernel(name, runs, scheme, target)


def no_kernel(name: str, runs: Runs, scheme: Scheme, target: Target) -> str | None:
    """Why an algorithm does not run on a GPU, or not with the scheme's groups; None if it does."""
    if not runs.released:
        return f"no release of TensorRT-LLM up to {TENSORRT_LLM} has {name}"
    assert target.capability is not None
    lowest, highest = runs.capabilities
    if not lowest <= target.capability <= highest:
        up_to = "and later" if highest == ANY else f"to sm{highest}"
        return f"{name} runs on sm{lowest} {up_to}, not on {target}"
    if runs.group_sizes and scheme.group_size not in runs.group_sizes:
        sizes = " or ".join(map(str, sorted(runs.group_sizes)))
        return f"the kernel for {name} takes groups of {sizes}, not of {scheme.group_size}"
    return None
