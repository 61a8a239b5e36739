"""What vLLM 0.32's loader demands of a checkpoint folder, as pure functions of its headers and config.

Each function yields findings and reads no more than it must: headers, and `check_scales` the scales.
Sources: vLLM 0.32.0, `layers/quantization/compressed_tensors/` (schemes/compressed_tensors_wNa16.py,
compressed_tensors_w8a8_int8.py, utils.py) and compressed-tensors 0.17, `quantization/quant_config.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from qdeploy.exporters.base import Finding
from qdeploy.exporters.layers import Layer, expert_sets, fused_sets
from qdeploy.formats.ct_layout import SUFFIXES, layout, storage_format
from qdeploy.formats.packed import Packed
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.schemes import Scheme

AGAIN = "Quantize the model again"
FLOATS = (torch.bfloat16, torch.float16, torch.float32)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
Expected = dict[str, tuple[tuple[torch.dtype, ...], tuple[int, ...]]]


def check_files(reader: CheckpointReader) -> Iterator[Finding]:
    """A tokenizer must be there; without generation config vLLM samples with its own defaults."""
    names = {path.name for path in reader.folder.iterdir()}
    if not names & set(TOKENIZERS):
        yield Finding(
            "error",
            f"has no tokenizer (none of {', '.join(TOKENIZERS)})",
            "Copy the tokenizer files of the original model into it",
            str(reader.folder),
        )
    elif "tokenizer_config.json" not in names:
        yield Finding(
            "warning",
            "has no tokenizer_config.json, so special tokens and chat template may be lost",
            "Copy it from the original model",
            str(reader.folder),
        )


def check_format(reader: CheckpointReader) -> Iterator[Finding]:
    """The checks below are of compressed-tensors folders."""
    found = Packed(reader).format
    if found is not None and found.name != "compressed-tensors":
        yield Finding(
            "error",
            f"is stored as {found.name}, and only compressed-tensors folders are checked",
            f"Convert it: qdeploy convert {reader.folder} --to compressed-tensors -o OUT",
            str(reader.folder),
        )


def check_tensors(reader: CheckpointReader, layers: Sequence[Layer]) -> Iterator[Finding]:
    """Every layer has exactly the tensors of its format, in the dtypes and shapes that vLLM allocates."""
    for layer in layers:
        expected = expected_tensors(layer)
        for suffix in SUFFIXES:
            name = f"{layer.name}.{suffix}"
            if suffix in expected and name not in reader:
                yield Finding("error", f"tensor {suffix} is missing", AGAIN, layer.name)
            elif suffix not in expected and name in reader:
                yield Finding("error", f"tensor {suffix} does not belong here", AGAIN, layer.name)
            elif suffix in expected:
                yield from _check_header(reader, layer.name, suffix, *expected[suffix])


def expected_tensors(layer: Layer) -> Expected:
    """Suffix → (allowed dtypes, shape) of the tensors that a layer must have (bias aside)."""
    scheme, n, k = layer.scheme, layer.n, layer.k
    if scheme is None:
        return {"weight": (FLOATS, (n, k))}
    return {
        suffix: (FLOATS if dtype == torch.bfloat16 else (dtype,), shape)
        for suffix, (dtype, shape) in layout(scheme, n, k).items()
    }


def _check_header(
    reader: CheckpointReader,
    module: str,
    suffix: str,
    dtypes: tuple[torch.dtype, ...],
    shape: tuple[int, ...],
) -> Iterator[Finding]:
    name = f"{module}.{suffix}"
    if reader.dtype(name) not in dtypes:
        wanted = " or ".join(_short(dtype) for dtype in dtypes)
        yield Finding("error", f"{suffix} is {_short(reader.dtype(name))}, not {wanted}", AGAIN, module)
    if reader.shape(name) != shape:
        yield Finding(
            "error", f"{suffix} has shape {list(reader.shape(name))}, not {list(shape)}", AGAIN, module
        )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_shapes(reader: CheckpointReader, layers: Sequence[Layer]) -> Iterator[Finding]:
    """`weight_shape` says what the model's code says."""
    for layer in layers:
        name = f"{layer.name}.weight_shape"
        if name in reader and reader.get(name).tolist() != [layer.n, layer.k]:
            found = reader.get(name).tolist()
            yield Finding("error", f"weight_shape is {found}, not {[layer.n, layer.k]}", AGAIN, layer.name)


def check_scales(reader: CheckpointReader, layers: Sequence[Layer]) -> Iterator[Finding]:
    """Scales are finite and positive; zero or NaN would silence or poison whole columns."""
    for layer in layers:
        name = f"{layer.name}.weight_scale"
        if layer.scheme is None or name not in reader:
            continue
        scales = reader.get(name)
        bad = int((~(scales.isfinite() & (scales > 0))).sum())
        if bad:
            yield Finding(
                "error",
                f"{bad} of {scales.numel()} scales are not finite and positive",
                f"{AGAIN}; if it happens again the 16-bit weights are damaged",
                layer.name,
            )


def check_groups(layers: Sequence[Layer]) -> Iterator[Finding]:
    """Groups divide the input columns: vLLM rounds down and would drop the rest."""
    for layer in layers:
        if layer.scheme and layer.scheme.group_size and layer.k % layer.scheme.group_size:
            yield Finding(
                "error",
                f"group size {layer.scheme.group_size} does not divide K = {layer.k}",
                f"{AGAIN} with --group-size auto",
                layer.name,
            )


def check_fused(layers: Sequence[Layer]) -> Iterator[Finding]:
    """What the engine multiplies as one matrix is stored in one way."""
    for name, members in fused_sets(layers):
        schemes = {member.scheme for member in members}
        if len(schemes) > 1:
            told = ", ".join(f"{member.leaf} {_describe(member.scheme)}" for member in members)
            yield Finding(
                "error",
                f"run as one matrix, but their schemes differ: {told}",
                "Give all of them one scheme in the recipe, or ignore all of them",
                name,
            )


def check_experts(layers: Sequence[Layer]) -> Iterator[Finding]:
    """All experts of a block are stored in one way: vLLM looks at the first only."""
    for name, members in expert_sets(layers).items():
        first: dict[Scheme | None, str] = {}
        for member in members:
            first.setdefault(member.scheme, member.name.removeprefix(f"{name}."))
        if len(first) > 1:
            told = ", ".join(f"{expert} {_describe(scheme)}" for scheme, expert in first.items())
            yield Finding(
                "error",
                f"vLLM runs these experts at once, but their schemes differ: {told}",
                "Give all of them one scheme in the recipe, or ignore all of them",
                name,
            )


def _describe(scheme: Scheme | None) -> str:
    return "16-bit" if scheme is None else scheme.describe()


def check_config(config: Mapping[str, Any], layers: Sequence[Layer]) -> Iterator[Finding]:
    """quantization_config describes the tensors that are there, and `ignore` every other linear layer."""
    block = config.get("quantization_config")
    if block is None:
        return
    if not any(layer.scheme for layer in layers):
        yield Finding(
            "error",
            "config.json has a quantization_config, but no linear layer has quantized tensors",
            "Remove quantization_config, or export the folder that `qdeploy quantize` wrote",
        )
    if block.get("quantization_status") not in (None, "compressed"):
        yield Finding(
            "error", f"quantization_status is {block['quantization_status']!r}, not 'compressed'", AGAIN
        )
    yield from _check_formats(block, layers)
    yield from _check_ignore(block.get("ignore") or [], layers)


def _check_formats(block: Mapping[str, Any], layers: Sequence[Layer]) -> Iterator[Finding]:
    present = {storage_format(layer.scheme) for layer in layers if layer.scheme}
    groups = block["config_groups"].values()
    named = {group.get("format") or block.get("format") for group in groups}
    if present - named:
        yield Finding(
            "error",
            f"quantization_config names the format {', '.join(map(str, sorted(named, key=str)))}, but layers "
            f"are stored as {', '.join(sorted(present))}",
            AGAIN,
        )


def _check_ignore(ignore: Sequence[str], layers: Sequence[Layer]) -> Iterator[Finding]:
    for layer in layers:
        if layer.scheme is None and not any(_names(entry, layer.name) for entry in ignore):
            yield Finding(
                "error",
                "is stored in 16 bits, but is not in quantization_config's ignore list",
                f'Add "{layer.name}" to ignore in config.json',
                layer.name,
            )
        elif layer.scheme is not None and any(_names(entry, layer.name) for entry in ignore):
            yield Finding("error", "is quantized and in the ignore list", "Remove it from ignore", layer.name)
    for entry in ignore:
        if entry not in ("lm_head", "Linear") and not any(_names(entry, layer.name) for layer in layers):
            yield Finding("warning", f"ignore names {entry!r}, which matches no linear layer", "Remove it")


def _names(entry: str, module: str) -> bool:
    """Whether an ignore entry means the module: by its name, or by a pattern after `re:`."""
    return re.match(entry[3:], module) is not None if entry.startswith("re:") else entry == module
