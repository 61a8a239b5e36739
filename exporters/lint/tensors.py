"""Tensors that are missing, too many, or of another dtype or shape: from headers alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from qdeploy.exporters.base import Finding
from qdeploy.exporters.layers import Layer
from qdeploy.exporters.lint.rule import rule
from qdeploy.exporters.lint.subject import Subject
from qdeploy.formats.packed import FORMATS, READ_ONLY
from qdeploy.formats.tensors import FLOATING, Layout
from qdeploy.modeling.checkpoint import CheckpointReader

AGAIN = "Quantize the model again"

SUFFIXES = tuple(
    dict.fromkeys(suffix for each in (*FORMATS.values(), *READ_ONLY.values()) for suffix in each.suffixes)
)
"""What a layer may own in any of the formats."""

OPTIONAL = {"gptq": {"g_idx"}, "gptq_v2": {"g_idx"}}
"""Format → tensors that a layer may have or not."""

SCALARS: tuple[tuple[int, ...], ...] = ((), (1,))
"""Shapes of one number; both are written."""

MISSING = rule(
    "QD201",
    "error",
    "A layer lacks a tensor of its format",
    """Engines allocate every tensor of a quantized layer and fill what they find. What is missing stays
    whatever the memory held, or is refused after the weights were read. compressed-tensors'
    `weight_shape` is such a tensor, and `pre_quant_scale` where ModelOpt's `W4A16_AWQ` layers run alone.""",
)
FOREIGN = rule(
    "QD202",
    "error",
    "A layer owns a tensor that its format does not have",
    """A 16-bit `weight` beside packed codes, or zero points under a symmetric scheme: one of the two is a
    leftover, and which of them an engine takes is its own affair.""",
)
DTYPE = rule(
    "QD203",
    "error",
    "A tensor is of another dtype than its format's",
    """Loaders copy into tensors of the right dtype, so numbers are cast: integers that pack codes become
    other codes.""",
)
SHAPE = rule(
    "QD204",
    "error",
    "A tensor is of another shape than its format's",
    """Engines allocate by config.json and the model's code, and fail when they copy. If only one layer is
    concerned its file is damaged; if all are, config.json belongs to another model.""",
)
TRANSPOSED = rule(
    "QD205",
    "error",
    "A tensor is transposed",
    """compressed-tensors and ModelOpt keep scales as [N, G], GPTQ and AWQ as [G, N]. Where both are equal
    no loader notices, and each output channel is multiplied by the scale of another.""",
)
GROUP_SIZE = rule(
    "QD206",
    "error",
    "The config has another group size than the scales",
    """The number of scales says how many columns share one. An engine that believes the config multiplies
    columns by scales of their neighbours' groups, or fails.""",
)
SAID_SHAPE = rule(
    "QD207",
    "error",
    "weight_shape is not the layer's shape",
    """`weight_shape` is how compressed-tensors knows N and K of packed codes. transformers follows it.""",
)
STRAY = rule(
    "QD208",
    "error",
    "Integer tensors under a layer that is not quantized",
    """The layer has no group in the config, or half of what a quantized layer owns: it was left out by
    mistake, or its other half was lost. Engines look for a 16-bit `weight` there.""",
)
ABSENT = rule(
    "QD209",
    "error",
    "Layers of the architecture have no tensors",
    """config.json's `architectures` and the weight files are not of one model. Engines that do not insist
    on every weight start with random ones.""",
)
UNKNOWN = rule(
    "QD210",
    "warning",
    "Tensors of no layer of the architecture",
    """Nobody reads them. They may be leftovers, layers for speculative decoding, or the tensors of another
    architecture, in which case QD209 says which ones are missing.""",
)
TIED = rule(
    "QD211",
    "error",
    "A head that is tied to the embeddings is quantized",
    """With `tie_word_embeddings` engines use the embeddings as the head and ignore the head's own tensors,
    so that what was measured with them is not what is served.""",
)
PRE_QUANT_SCALE = rule(
    "QD212",
    "error",
    "pre_quant_scale on a layer that runs fused",
    """Inputs of q, k, v, gate and up are scaled in the norm before them. TensorRT-LLM loads no
    `pre_quant_scale` there, so inputs would stay unscaled.""",
)
INDIVISIBLE = rule(
    "QD213",
    "error",
    "Groups do not divide the input columns",
    """vLLM divides and rounds down, and drops the rest of the columns.""",
)


def check_tensors(subject: Subject) -> Iterator[Finding]:
    """Every layer has exactly the tensors of its format, in dtypes and shapes that engines allocate."""
    for layer in subject.layers:
        if not subject.holds(layer):
            continue  # told by check_names
        expected = _expected(subject, layer)
        if expected is None:
            continue  # looked at when it is decoded
        allowed = expected.keys() | (OPTIONAL.get(str(subject.format), set()) if layer.scheme else set())
        for suffix in SUFFIXES:
            name = f"{layer.name}.{suffix}"
            if suffix in expected and name not in subject.reader:
                yield MISSING(f"tensor {suffix} is missing", AGAIN, layer.name)
            elif name in subject.reader and suffix not in allowed:
                yield _misplaced(layer, suffix)
            elif suffix in expected:
                yield from _check_header(subject.reader, layer, suffix, *expected[suffix])


def _expected(subject: Subject, layer: Layer) -> Layout | None:
    """What the layer must own, its bias aside; None in a format that has no layout."""
    if layer.scheme is None or subject.packed.format is None:
        return {"weight": (FLOATING, (layer.n, layer.k))}
    layout = subject.packed.format.layout
    return layout(layer.name, layer.scheme, layer.n, layer.k) if layout else None


def _misplaced(layer: Layer, suffix: str) -> Finding:
    if suffix == "pre_quant_scale":
        return PRE_QUANT_SCALE("has a pre_quant_scale, but runs fused", AGAIN, layer.name)
    found = FOREIGN if layer.scheme else STRAY
    return found(f"tensor {suffix} does not belong here", AGAIN, layer.name)


def _check_header(
    reader: CheckpointReader,
    layer: Layer,
    suffix: str,
    dtypes: tuple[torch.dtype, ...],
    shape: tuple[int, ...],
) -> Iterator[Finding]:
    name = f"{layer.name}.{suffix}"
    dtype, found = reader.dtype(name), reader.shape(name)
    if dtype not in dtypes:
        wanted = " or ".join(_short(dtype) for dtype in dtypes)
        kind = DTYPE if layer.scheme or dtype.is_floating_point else STRAY
        yield kind(f"{suffix} is {_short(dtype)}, not {wanted}", AGAIN, layer.name)
    if found != shape and not (found in SCALARS and shape in SCALARS):
        yield _misshapen(layer, suffix, found, shape)


def _misshapen(layer: Layer, suffix: str, found: tuple[int, ...], shape: tuple[int, ...]) -> Finding:
    told = f"{suffix} has shape {list(found)}, not {list(shape)}"
    if found == shape[::-1]:
        return TRANSPOSED(f"{told}: it is transposed", AGAIN, layer.name)
    groups = _groups(layer, suffix, found, shape)
    if groups is not None:
        return GROUP_SIZE(
            f"{told}: {groups} groups of {layer.k // groups} columns, where the config says "
            f"{layer.scheme.group_size if layer.scheme else None}",
            f"Write {layer.k // groups} into the config if all layers have it",
            layer.name,
        )
    return SHAPE(told, AGAIN, layer.name)


def _groups(layer: Layer, suffix: str, found: tuple[int, ...], shape: tuple[int, ...]) -> int | None:
    """How many groups a tensor of scales or zero points has, where that is all that is wrong with it."""
    if layer.scheme is None or len(found) != len(shape) or not ("scale" in suffix or "zero" in suffix):
        return None
    wrong = [axis for axis in range(len(shape)) if found[axis] != shape[axis]]
    if len(wrong) != 1 or shape[wrong[0]] != layer.scheme.groups(layer.k):
        return None
    groups = found[wrong[0]]
    return groups if groups and layer.k % groups == 0 else None


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_shapes(subject: Subject) -> Iterator[Finding]:
    """`weight_shape` says what the model's code says."""
    for layer in subject.quantized():
        name = f"{layer.name}.weight_shape"
        if name in subject.reader and subject.reader.get(name).tolist() != [layer.n, layer.k]:
            found = subject.reader.get(name).tolist()
            yield SAID_SHAPE(f"weight_shape is {found}, not {[layer.n, layer.k]}", AGAIN, layer.name)


def check_groups(subject: Subject) -> Iterator[Finding]:
    """Groups divide the input columns."""
    for layer in subject.quantized():
        size = layer.scheme.group_size if layer.scheme else None
        if size and layer.k % size:
            yield INDIVISIBLE(
                f"group size {size} does not divide K = {layer.k}",
                f"{AGAIN} with --group-size auto",
                layer.name,
            )


def check_names(subject: Subject) -> Iterator[Finding]:
    """The weight files hold the architecture's layers, and nothing else."""
    absent = [layer.name for layer in subject.layers if not subject.holds(layer)]
    name = ", ".join(subject.reader.config.get("architectures") or ["config.json's model"])
    if absent:
        yield ABSENT(
            f"{len(absent)} of {len(subject.layers)} linear layers of {name} have no tensors",
            "Restore config.json and weight files of one model",
            absent[0],
        )
    known = {layer.name for layer in subject.layers}
    strays = [module for module in _modules(subject) if module not in known]
    if strays:
        yield UNKNOWN(
            f"packed tensors of {len(strays)} modules that {name} does not have, this one first",
            "Remove them, or restore the config.json that belongs to them",
            strays[0],
        )


def _modules(subject: Subject) -> list[str]:
    """Modules with codes or scales, but for a head that the architecture ties to the embeddings."""
    packed = dict.fromkeys(
        name.rpartition(".")[0]
        for name in subject.reader.names
        if name.rpartition(".")[2] in SUFFIXES and not name.endswith(".weight")
    )
    tied = subject.reader.config.get("tie_word_embeddings")
    return [module for module in packed if not (tied and module == "lm_head")]


def check_tied_head(subject: Subject) -> Iterator[Finding]:
    """A head that is the embeddings has no codes of its own."""
    if not subject.reader.config.get("tie_word_embeddings"):
        return
    found = [suffix for suffix in SUFFIXES if f"lm_head.{suffix}" in subject.reader and suffix != "weight"]
    if found:
        yield TIED(
            f"has {', '.join(found)}, but tie_word_embeddings makes engines use the embeddings",
            "Set tie_word_embeddings to false, or remove the tensors of lm_head",
            "lm_head",
        )
