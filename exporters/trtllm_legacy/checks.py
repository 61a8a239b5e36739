"""What the engine builder demands of a checkpoint, before one is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from qdeploy.exporters import parallel
from qdeploy.exporters.algorithms import CACHE_IN_FP8
from qdeploy.exporters.base import Finding
from qdeploy.exporters.cache import NO_CACHE_IN_FP8, NO_SCALE, WITHOUT
from qdeploy.exporters.layers import ROW_PARALLEL, FusedLayer, Layer, fused_sets, per_device
from qdeploy.exporters.lint.engine import LOST_IN_CHECKPOINT, NOT_LISTED, NOT_TAKEN
from qdeploy.exporters.lint.fused import DIVISORS
from qdeploy.exporters.targets import Target
from qdeploy.exporters.trtllm_legacy.algorithms import UNLISTED, algorithm, objection
from qdeploy.exporters.trtllm_legacy.config import OTHER
from qdeploy.exporters.trtllm_legacy.names import ARCHITECTURES, HEAD, UNITS, block, hf_block
from qdeploy.exporters.trtllm_legacy.split import Split
from qdeploy.formats import modelopt
from qdeploy.formats.packed import Packed
from qdeploy.kv_cache import KEY, VALUE, stored_scales
from qdeploy.schemes import Scheme

AGAIN = "Quantize the model again"


def check_architecture(config: Mapping[str, Any]) -> Iterator[Finding]:
    """The model is one whose parts have known names."""
    found = (config.get("architectures") or ["none"])[0]
    if found not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        yield NOT_TAKEN(f"the architecture is {found}; this backend knows {known}", OTHER)


def check_precision(config: Mapping[str, Any], schemes: Iterable[Scheme]) -> Iterator[Finding]:
    """TensorRT-LLM lists the algorithm for the architecture; what it does not list may run, or not."""
    architecture = config["architectures"][0]
    for name in {algorithm(scheme) for scheme in schemes} & UNLISTED.get(architecture, frozenset()):
        problem = f"TensorRT-LLM's matrix of models and precisions lists no {name} for {architecture}"
        yield NOT_LISTED(problem, "Compare the engine's answers with the 16-bit model's")


def check_split(layers: Sequence[Layer], config: Mapping[str, Any], split: Split) -> Iterator[Finding]:
    """Stages have as many layers each, and devices whole heads and groups."""
    count, stages = config["num_hidden_layers"], split.pipeline_parallel
    if count % stages:
        fits = " or ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        problem = f"{count} layers cannot be dealt evenly to {stages} stages"
        yield NOT_TAKEN(problem, f"Use --pipeline-parallel {fits}")
    yield from parallel.check_heads(config, split.tensor_parallel)
    yield from parallel.check_partition(layers, split.tensor_parallel, parallel.heads(config)[1])


def check_schemes(layers: Sequence[Layer], split: Split) -> Iterator[Finding]:
    """All quantized layers have one scheme, none is the head, and all stages leave the same layers out."""
    schemes = dict.fromkeys(layer.scheme for layer in layers if layer.scheme)
    if len(schemes) > 1:
        told = "; ".join(scheme.describe() for scheme in schemes)
        problem = f"layers have several schemes, and the engine builder is given one: {told}"
        yield NOT_TAKEN(problem, f"{AGAIN} with one scheme, or use --backend pytorch")
        return
    for layer in layers:
        if layer.name == HEAD and layer.scheme:
            yield NOT_TAKEN("only layers inside blocks are exported quantized", AGAIN, HEAD)
    for scheme in schemes:
        yield from _check_kept(kept(layers, split), scheme)


def _check_kept(stages: Sequence[Sequence[str]], scheme: Scheme) -> Iterator[Finding]:
    if any(stage != stages[0] for stage in stages):
        yield NOT_TAKEN(
            "stages keep different layers in 16 bits, which the config cannot say: every stage counts its "
            "layers from 0",
            "Use --pipeline-parallel 1",
        )
    if stages[0] and algorithm(scheme) == modelopt.FLOATS["FP8_DYNAMIC"]:
        problem = f"{algorithm(scheme)} takes all layers of a block or none; {stages[0][0]} is in 16 bits"
        yield NOT_TAKEN(problem, f"{AGAIN} without exceptions")


def kept(layers: Sequence[Layer], split: Split) -> list[list[str]]:
    """The layers in 16 bits of each stage, by the builder's names."""
    schemes = {layer.name: layer.scheme for layer in layers}
    count = 1 + max(int(layer.name.split(".")[2]) for layer in layers if layer.name != HEAD)
    each = count // split.pipeline_parallel
    return [
        [
            f"{block(own)}.{unit.name}"
            for own in range(each)
            for unit in UNITS
            if schemes[f"{hf_block(stage * each + own)}.{unit.members[0]}"] is None
        ]
        for stage in range(split.pipeline_parallel)
    ]


def check_kernels(layers: Sequence[Layer], kv_heads: int, split: Split, target: Target) -> Iterator[Finding]:
    """The device runs every layer as it is split, and none would be padded when it is loaded."""
    known = f"{AGAIN} to what it runs there: qdeploy methods --gpu {target.name}"
    for layer in per_device(layers, split.tensor_parallel, kv_heads):
        assert layer.scheme is not None
        reason = objection(layer.scheme, layer.n, layer.k, target)
        if reason is not None:
            yield parallel.NO_KERNEL(reason, known, layer.name)
        elif algorithm(layer.scheme) in modelopt.PAIRED:
            yield from _check_padding(layer, split)


def _check_padding(layer: FusedLayer, split: Split) -> Iterator[Finding]:
    """The builder makes room for layers padded to whole groups, into which a checkpoint's do not fit."""
    multiple = layer.scheme.group_size if layer.scheme else None
    assert multiple is not None
    # Gate and up are two layers to it.
    n = layer.n // 2 if layer.name.endswith("gate_up_proj") else layer.n
    shared_out = "K" if layer.members[0].leaf in ROW_PARALLEL else "N"
    for side, size in (("N", n), ("K", layer.k)):
        wanted = multiple if side == shared_out else multiple * split.tensor_parallel
        if size % wanted:
            problem = f"{side} = {size} of a device's part is no multiple of {wanted}, to which it is padded"
            fix = "Use a smaller --tensor-parallel, or --backend pytorch"
            yield NOT_TAKEN(problem, fix, layer.name)


def check_shared_scales(packed: Packed, layers: Sequence[Layer]) -> Iterator[Finding]:
    """Layers that run as one have one scale, divisor and input scale where these are for a whole layer."""
    for name, members in fused_sets(layers):
        scheme = members[0].scheme
        if scheme is None or not (scheme.shared_largest or scheme.needs_data):
            continue
        found = {member.leaf: _shared(packed, member) for member in members}
        if len(set(found.values())) > 1:
            told = ", ".join(f"{leaf} {' and '.join(numbers)}" for leaf, numbers in found.items())
            yield DIVISORS(f"scales of layers that run as one matrix differ: {told}", AGAIN, name)


def _shared(packed: Packed, layer: Layer) -> tuple[str, ...]:
    q = packed.read(layer.name)
    scale = q.scales[0, 0] if q.scheme.rows is None else None
    return tuple(_number(number) for number in (scale, q.divisor, q.input_scale) if number is not None)


def _number(scale: Tensor) -> str:
    return f"{float(scale):.9g}"


def check_cache(packed: Packed, count: int, target: Target) -> Iterator[Finding]:
    """Each of `count` layers has one scale of its keys and one of its values, and the device such a cache."""
    scales = stored_scales(packed.reader)
    if not scales:
        return
    if target.capability is not None and target.capability < CACHE_IN_FP8:
        yield NO_CACHE_IN_FP8(f"on {target} there is no cache in FP8", WITHOUT)
    for layer in range(count):
        module = f"{hf_block(layer)}.self_attn"
        found = scales.get(module, {})
        if any(scale.numel() > 1 for scale in found.values()):
            yield NOT_TAKEN("has a scale of its cache for each head, not one", AGAIN, module)
        if missing := [suffix for suffix in (KEY, VALUE) if suffix not in found]:
            yield NO_SCALE(f"{' and '.join(missing)} missing", AGAIN, module)
    yield LOST_IN_CHECKPOINT("keys and values get one scale, the larger of the two")
