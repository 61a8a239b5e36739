"""What is in a checkpoint folder, from its headers, config and manifest alone: no weight is decoded."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import BaseModel

from qdeploy.checkpoint.manifest import Manifest, load_manifest
from qdeploy.formats.packed import Packed
from qdeploy.kv_cache import is_cache_scale, stored_scales
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.schemes import INT8_PER_TOKEN, Scheme

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
        served_by=served_by(set(schemes.values()), packed.format.name if packed.format else None),
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


def served_by(schemes: set[Scheme], format: str | None = "compressed-tensors") -> list[str]:
    """Who can run all of these schemes: vLLM where it has kernels, transformers by decoding to 16 bits.

    Args:
        schemes: of the layers.
        format: that they are stored in; None for 16 bits.
    """
    engines = {"vLLM on CUDA": _vllm_cuda, "vLLM on CPU": _vllm_cpu}
    takes = _VLLM_TAKES.get(str(format))
    native = [
        name
        for name, runs in engines.items()
        if all((takes is None or takes(scheme)) and runs(scheme) for scheme in schemes)
    ]
    if format == "modelopt":
        return [*native, "TensorRT-LLM"]
    if format not in (None, "compressed-tensors"):
        return [*native, "transformers with gptqmodel"]
    # compressed-tensors 0.18 to 0.20 cannot load packed zero points in the default way.
    symmetric = all(scheme.symmetric for scheme in schemes)
    return [*native, "transformers" + ("" if symmetric else " with CompressedTensorsConfig(dequantize=True)")]


_VLLM_TAKES: Mapping[str, Callable[[Scheme], bool]] = {
    "gptq": lambda scheme: scheme.symmetric and scheme.bits in (4, 8),
    "gptq_v2": lambda scheme: scheme.symmetric and scheme.bits in (4, 8),
    "modelopt": lambda scheme: scheme.element is not None,
}
"""Format → what vLLM 0.32 reads of it, where that is not all."""


def _vllm_cuda(scheme: Scheme) -> bool:
    # Its Humming kernel takes what Machete and Marlin do not: 2 to 8 bits, on either grid.
    return not (scheme.bits == 4 and scheme.activations == INT8_PER_TOKEN)


def _vllm_cpu(scheme: Scheme) -> bool:
    if scheme.element is not None:
        return scheme.name == "FP8_DYNAMIC"
    return scheme.bits == 4 or scheme.activations is not None
