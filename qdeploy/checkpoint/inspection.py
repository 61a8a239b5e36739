"""What is in a checkpoint folder, from its headers, config and manifest alone: no weight is decoded."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel

from qdeploy.checkpoint.manifest import Manifest, load_manifest
from qdeploy.formats.gptq_config import act_order
from qdeploy.formats.packed import Packed, block_of
from qdeploy.kv_cache import is_cache_scale, stored_scales
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.schemes import INT8_PER_TOKEN, PRESETS, Scheme

CODES, SCALES = "quantized weights", "scales and zero points"
EMBEDDINGS, LINEAR, VECTORS = "embeddings and output head", "16-bit linear layers", "norms and biases"


class SchemeUse(BaseModel):
    """The layers of one scheme: `bits_per_weight` counts scales, zero points and shapes too."""

    scheme: str
    modules: int
    weights: int
    bytes: int
    bits_per_weight: float


class Inspection(BaseModel):
    """A checkpoint folder.

    Attributes:
        parameters: weights and biases of the model, however they are stored.
        bytes: of all tensors.
        bytes_by_part: what they are spent on.
        bits_per_weight: 8 · bytes / parameters.
        format: that packed layers are stored in; None where there are none.
        kv_cache: attention modules whose keys and values are cached in FP8.
        served_by: engines that have kernels for every scheme in it.
        manifest: how qdeploy made it; None for a folder of another tool.
    """

    folder: Path
    architecture: str
    model_type: str
    dtype: str
    parameters: int
    files: int
    bytes: int
    bytes_by_part: dict[str, int]
    bits_per_weight: float
    schemes: list[SchemeUse]
    format: str | None
    kv_cache: int
    served_by: list[str]
    manifest: Manifest | None


def inspect_checkpoint(folder: Path) -> Inspection:
    """Describe a checkpoint of qdeploy, of llm-compressor, or one in 16 bits.

    Raises:
        CheckpointError: not a checkpoint folder, broken, or quantized in a way that cannot be read.
    """
    reader = CheckpointReader(folder)
    packed = Packed(reader)
    schemes, owned = packed.schemes, packed.tensors
    parts = _bytes_by_part(reader, owned)
    uses = _scheme_uses(packed)
    unquantized = sum(
        math.prod(reader.shape(name))
        for name in reader.names
        if name not in owned and not is_cache_scale(name)
    )
    parameters = unquantized + sum(use.weights for use in uses)
    total = sum(parts.values())
    return Inspection(
        folder=folder,
        architecture=", ".join(reader.config.get("architectures") or ["unknown"]),
        model_type=reader.config.get("model_type", "unknown"),
        dtype=reader.config.get("dtype") or reader.config.get("torch_dtype") or "unknown",
        parameters=parameters,
        files=len(reader.files),
        bytes=total,
        bytes_by_part=parts,
        bits_per_weight=8 * total / parameters,
        schemes=uses,
        kv_cache=len(stored_scales(reader)),
        format=packed.format.name if packed.format else None,
        served_by=served_by(
            set(schemes.values()),
            packed.format.name if packed.format else None,
            act_order=act_order(block_of(reader) or {}),
        ),
        manifest=load_manifest(folder),
    )


def _bytes_by_part(reader: CheckpointReader, owned: Mapping[str, str]) -> dict[str, int]:
    parts: dict[str, int] = defaultdict(int)
    for name in reader.names:
        parts[_part(reader, name, name in owned)] += reader.nbytes(name)
    return dict(sorted(parts.items(), key=lambda item: -item[1]))


def _part(reader: CheckpointReader, name: str, quantized: bool) -> str:
    if is_cache_scale(name):
        return SCALES
    if quantized:
        return CODES if name.endswith((".weight_packed", ".weight", ".qweight")) else SCALES
    if len(reader.shape(name)) < 2:
        return VECTORS
    return EMBEDDINGS if "embed" in name or "lm_head" in name else LINEAR


def _scheme_uses(packed: Packed) -> list[SchemeUse]:
    """One entry per scheme, the most used first."""
    spent: dict[str, int] = defaultdict(int)
    reader, schemes = packed.reader, packed.schemes
    for name, module in packed.tensors.items():
        spent[module] += reader.nbytes(name)
    uses = []
    for scheme in dict.fromkeys(schemes.values()):
        modules = [module for module, other in schemes.items() if other == scheme]
        weights = sum(math.prod(packed.shape(module)) for module in modules)
        size = sum(spent[module] for module in modules)
        uses.append(
            SchemeUse(
                scheme=scheme.describe(),
                modules=len(modules),
                weights=weights,
                bytes=size,
                bits_per_weight=8 * size / weights,
            )
        )
    return sorted(uses, key=lambda use: -use.weights)


def served_by(
    schemes: set[Scheme], format: str | None = "compressed-tensors", *, act_order: bool = False
) -> list[str]:
    """Who can run all of these schemes: vLLM where it has kernels, transformers by decoding to 16 bits.

    Args:
        schemes: of the layers.
        format: that they are stored in; None for 16 bits.
        act_order: whether its config says so, which vLLM refuses of groups, whatever order they are in.
    """
    if format in _ONLY:
        return [_ONLY[format]]
    return [*_vllm(schemes, format, act_order), *_others(schemes, format)]


def _vllm(schemes: set[Scheme], format: str | None, act_order: bool) -> Iterator[str]:
    takes = _VLLM_TAKES.get(str(format))
    if (takes and not all(map(takes, schemes))) or (act_order and any(s.group_size for s in schemes)):
        return
    if all(map(_vllm_cuda, schemes)):
        yield "vLLM on CUDA"
    # fp8 has scales of whole layers or of blocks, for which there are no kernels on CPUs.
    if format != "fp8" and all(map(_vllm_cpu, schemes)):
        yield "vLLM on CPU"


def _others(schemes: set[Scheme], format: str | None) -> Iterator[str]:
    if format in ("gptq", "gptq_v2", "awq"):
        yield "transformers with gptqmodel"
    elif format == "modelopt":
        if not schemes & {PRESETS["MXFP4"], PRESETS["W8A8_STATIC"]}:
            yield "TensorRT-LLM"
    elif format == "fp8":
        # TensorRT-LLM knows blocks alone; transformers drops scales of whole layers for their names.
        yield from ("TensorRT-LLM", "transformers") if schemes == {PRESETS["FP8_BLOCK"]} else ()
    elif all(scheme.symmetric for scheme in schemes):
        yield "transformers"
    else:
        # compressed-tensors 0.18 to 0.20 cannot load packed zero points in the default way.
        yield "transformers with CompressedTensorsConfig(dequantize=True)"


_ONLY: Mapping[str | None, str] = {
    "bitsandbytes": "transformers with bitsandbytes",
    "fbgemm_fp8": "transformers with fbgemm-gpu",
}
"""Format → what alone reads it; vLLM 0.32 takes FBGEMM's only with a flag that qdeploy does not give."""

_VLLM_TAKES: Mapping[str, Callable[[Scheme], bool]] = {
    "gptq": lambda scheme: scheme.symmetric and scheme.bits in (4, 8),
    "gptq_v2": lambda scheme: scheme.symmetric and scheme.bits in (4, 8),
    "modelopt": lambda scheme: scheme.element is not None and scheme.name != "MXFP4",
}
"""Format → what vLLM 0.32 reads of it, where that is not all."""


def _vllm_cuda(scheme: Scheme) -> bool:
    # Its Humming kernel takes what Machete and Marlin do not: 2 to 8 bits, on either grid.
    return not (scheme.bits == 4 and scheme.activations == INT8_PER_TOKEN)


def _vllm_cpu(scheme: Scheme) -> bool:
    if scheme.element is not None:
        return scheme.name == "FP8_DYNAMIC"
    return scheme.bits == 4 or scheme.activations is not None
