"""Config and tensors: what config.json says of the layers is what they are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from qdeploy.exporters.base import Finding
from qdeploy.exporters.layers import Layer, fused_sets
from qdeploy.exporters.lint.rule import rule
from qdeploy.exporters.lint.subject import Subject
from qdeploy.exporters.lint.tensors import AGAIN
from qdeploy.formats.ct_layout import storage_format
from qdeploy.formats.format import Block

NOTHING_QUANTIZED = rule(
    "QD401",
    "error",
    "A quantization_config, but no quantized layer",
    """The block of another folder was copied, or the layers were dequantized since. Engines look for packed
    tensors and find none.""",
)
STATUS = rule(
    "QD402",
    "error",
    "quantization_status is not compressed",
    """compressed-tensors writes other states while a model is being calibrated; engines then expect 16-bit
    weights.""",
)
FORMAT = rule(
    "QD403",
    "error",
    "The config names another storage format than the tensors have",
    """`format` of a group decides which tensors a loader looks for: `pack-quantized` weights, `int-
    quantized` ones and so on own different ones.""",
)
NOT_IGNORED = rule(
    "QD404",
    "error",
    "A layer in 16 bits that the config does not except",
    "Engines allocate packed tensors for it and find a 16-bit weight. Name it in `ignore`.",
)
IGNORED = rule(
    "QD405",
    "error",
    "A quantized layer that the config excepts",
    """Engines look for a 16-bit weight and find packed ones. In AWQ's `modules_to_not_convert` a name
    counts wherever it is part of a module's: `gate` excepts `gate_proj` too.""",
)
IDLE = rule(
    "QD406",
    "warning",
    "The config excepts a layer that does not exist",
    "A misspelt name, which leaves the layer that was meant without an exception.",
)
RULES_UNFUSED = rule(
    "QD407",
    "error",
    "GPTQ's dynamic rules do not reach fused layers",
    """vLLM compares the patterns with the names of fused layers (`qkv_proj`, `gate_up_proj`). A rule that
    gives q, k and v other bits and does not match `qkv_proj` is not applied, and loading fails.""",
)
ACT_ORDER = rule(
    "QD408",
    "error",
    "Columns are grouped by act-order",
    """With `desc_act` and groups, columns of one group are not neighbours. vLLM refuses that; with
    `desc_act: false` in the config and a `g_idx` that jumps, it computes with the wrong scales.
    `static_groups` has the same accuracy without.""",
)


def check_config(subject: Subject) -> Iterator[Finding]:
    """quantization_config describes the tensors that are there."""
    if not subject.block:
        return
    if not any(subject.quantized()):
        yield NOTHING_QUANTIZED(
            "config.json has a quantization_config, but no linear layer has quantized tensors",
            "Remove quantization_config, or export the folder that `qdeploy quantize` wrote",
        )
    checks = {"compressed-tensors": _check_ct, "awq": _check_awq, "gptq": _check_gptq, "gptq_v2": _check_gptq}
    found = checks.get(str(subject.format))
    if found is not None:
        yield from found(subject.block, list(filter(subject.holds, subject.layers)))


def _check_ct(block: Block, layers: Sequence[Layer]) -> Iterator[Finding]:
    if block.get("quantization_status") not in (None, "compressed"):
        yield STATUS(f"quantization_status is {block['quantization_status']!r}, not 'compressed'", AGAIN)
    yield from _check_formats(block, layers)
    yield from _check_ignore(block.get("ignore") or [], layers)


def _check_formats(block: Block, layers: Sequence[Layer]) -> Iterator[Finding]:
    present = {storage_format(layer.scheme) for layer in layers if layer.scheme}
    groups = block["config_groups"].values()
    named = {group.get("format") or block.get("format") for group in groups}
    if present - named:
        yield FORMAT(
            f"quantization_config names the format {', '.join(map(str, sorted(named, key=str)))}, but layers "
            f"are stored as {', '.join(sorted(present))}",
            AGAIN,
        )


def _check_ignore(ignore: Sequence[str], layers: Sequence[Layer]) -> Iterator[Finding]:
    for layer in layers:
        named = any(_names(entry, layer.name) for entry in ignore)
        if layer.scheme is None and not named:
            yield NOT_IGNORED(
                "is stored in 16 bits, but is not in quantization_config's ignore list",
                f'Add "{layer.name}" to ignore in config.json',
                layer.name,
            )
        elif layer.scheme is not None and named:
            yield IGNORED("is quantized and in the ignore list", "Remove it from ignore", layer.name)
    for entry in ignore:
        if entry not in ("lm_head", "Linear") and not any(_names(entry, layer.name) for layer in layers):
            yield IDLE(f"ignore names {entry!r}, which matches no linear layer", "Remove it")


def _names(entry: str, module: str) -> bool:
    """Whether an ignore entry means the module: by its name, or by a pattern after `re:`."""
    return re.match(entry[3:], module) is not None if entry.startswith("re:") else entry == module


def _check_awq(block: Block, layers: Sequence[Layer]) -> Iterator[Finding]:
    """vLLM takes an entry for a part of the name."""
    for entry in block.get("modules_to_not_convert") or []:
        caught = [layer.name for layer in layers if layer.scheme and entry in layer.name]
        if caught:
            yield IGNORED(
                f"{len(caught)} quantized layers have {entry!r} of modules_to_not_convert in their names",
                "Write whole names there, or null: engines then look at the tensors",
                caught[0],
            )


def _check_gptq(block: Block, layers: Sequence[Layer]) -> Iterator[Finding]:
    rules = dict(block.get("dynamic") or {})
    for pattern in rules:
        caught = [layer.name for layer in layers if layer.scheme and _excepts(pattern, layer.name)]
        if caught:
            yield IGNORED(
                f"is quantized, but {pattern!r} of dynamic excepts it", "Remove the rule", caught[0]
            )
    yield from _check_fused_rules(rules, layers)
    size = block.get("group_size", block.get("q_group_size"))
    if block.get("desc_act") and size != -1:
        yield ACT_ORDER(
            f"desc_act is true with groups of {size}",
            "If g_idx counts up (static groups), set desc_act to false; else quantize again without it",
        )


def _excepts(pattern: str, module: str) -> bool:
    return pattern.startswith("-:") and re.match(pattern[2:], module) is not None


def _check_fused_rules(rules: dict[str, Any], layers: Sequence[Layer]) -> Iterator[Finding]:
    """Rules that change something for q, k and v change it for qkv too."""
    changing = [pattern.removeprefix("+:") for pattern in rules if not pattern.startswith("-:")]
    for name, members in fused_sets(layers):
        for pattern in changing:
            if re.match(pattern, members[0].name) and not re.match(pattern, name):
                yield RULES_UNFUSED(
                    f"{pattern!r} of dynamic matches {members[0].leaf}, but not {name.rpartition('.')[2]}",
                    f"Let the pattern match {name.rpartition('.')[2]} too",
                    name,
                )
