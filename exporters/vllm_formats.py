"""What vLLM 0.32 reads of each format.

After `layers/quantization/auto_gptq.py` (`TYPE_MAP`), `auto_awq.py`, `modelopt.py` (`get_min_capability`) and
`utils/marlin_utils.py` (`MARLIN_SUPPORTED_GROUP_SIZES`) of vLLM 0.32.0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from qdeploy.exporters.base import Finding
from qdeploy.exporters.kernels import VLLM
from qdeploy.exporters.layers import Layer
from qdeploy.exporters.lint.engine import NOT_READ
from qdeploy.exporters.lint.subject import Subject
from qdeploy.exporters.targets import Target
from qdeploy.formats import ct_layout
from qdeploy.formats.modelopt import algorithm
from qdeploy.schemes import Scheme

GPTQ_BITS, GPTQ_GROUPS = (4, 8), (None, 32, 64, 128)
LEAST_CAPABILITY = {"FP8": 80, "FP8_PER_CHANNEL_PER_TOKEN": 80, "fp8_pb_wo": 80, "MXFP8": 80}
"""ModelOpt's algorithm → compute capability times ten that its loader asks for, above the kernels' own."""


def _gptq(scheme: Scheme, _: Target | None) -> str | None:
    if not scheme.symmetric:
        return "it reads no zero points of GPTQ folders"
    if scheme.bits not in GPTQ_BITS:
        return f"it reads GPTQ folders of 4 or 8 bits, not of {scheme.bits}"
    if scheme.group_size not in GPTQ_GROUPS:
        return f"it reads GPTQ folders with groups of 32, 64, 128 or whole rows, not of {scheme.group_size}"
    return None


def _modelopt(scheme: Scheme, target: Target | None) -> str | None:
    name = str(algorithm(scheme))
    if scheme.element is None:
        return f"it reads no {name} of ModelOpt's"
    least = LEAST_CAPABILITY.get(name, 0)
    if target and target.capability is not None and target.capability < least:
        return f"it reads ModelOpt's {name} on sm{least} and later, not on {target}"
    return None


def _fp8(scheme: Scheme, target: Target | None) -> str | None:
    if scheme.name == "FP8_DYNAMIC" and target and target.capability is None:
        return "it reads fp8 folders with one scale for a layer on GPUs alone"
    return None


def _fbgemm(_: Scheme, __: Target | None) -> str | None:
    return "it reads FBGEMM's FP8 only with --allow-deprecated-quantization"


def _bitsandbytes(_: Scheme, __: Target | None) -> str | None:
    return "it has no bitsandbytes"


_OBJECTIONS: Mapping[str, Callable[[Scheme, Target | None], str | None]] = {
    "gptq": _gptq,
    "gptq_v2": _gptq,
    "modelopt": _modelopt,
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm,
    "bitsandbytes": _bitsandbytes,
}


def objection(format: str | None, scheme: Scheme, target: Target | None) -> str | None:
    """Why vLLM does not read layers of the scheme in that format; None if it does."""
    found = _OBJECTIONS.get(str(format))
    return found(scheme, target) if found else None


def check_format(subject: Subject, target: Target) -> Iterator[Finding]:
    """vLLM reads every layer in the format that it is stored in."""
    first: dict[str, Layer] = {}
    for layer in subject.quantized():
        reason = objection(subject.format, layer.scheme, target) if layer.scheme else None
        if reason is not None:
            first.setdefault(reason, layer)
    for reason, layer in first.items():
        yield NOT_READ(f"vLLM {VLLM} does not take it: {reason}", _mend(subject, layer), layer.name)


def _mend(subject: Subject, layer: Layer) -> str:
    assert layer.scheme is not None
    if ct_layout.refusal(layer.scheme, layer.n, layer.k):
        return f"qdeploy export {subject.reader.folder} --engine vllm --reference makes 16 bits of it"
    return f"qdeploy convert {subject.reader.folder} --to compressed-tensors -o OUT"
