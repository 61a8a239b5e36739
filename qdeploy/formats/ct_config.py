"""`quantization_config` of compressed-tensors: which layer is stored how, written and read.

The block is what compressed-tensors 0.17 to 0.20, transformers 5 and vLLM 0.32 parse; they refuse unknown
keys inside a group.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from qdeploy.errors import CheckpointError
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.schemes import PRESETS, Scheme

PACKED, INT8 = "pack-quantized", "int-quantized"
_WEIGHT_SUFFIXES = (".weight_packed", ".weight_scale")


def storage_format(scheme: Scheme) -> str:
    """The compressed-tensors name of how `scheme` is stored."""
    return PACKED if scheme.activation_bits is None else INT8


def quantization_config(schemes: Mapping[str, Scheme], ignore: Sequence[str]) -> dict[str, Any]:
    """The `quantization_config` block of config.json.

    Args:
        schemes: quantized module → its scheme.
        ignore: linear modules left in 16 bits, e.g. ["lm_head"].

    One scheme for all makes one group that targets every Linear; several make a group each, whose targets
    are the exact module names, so that no module can fall in two groups.
    """
    modules: dict[Scheme, list[str]] = {}
    for name, scheme in schemes.items():
        modules.setdefault(scheme, []).append(name)
    groups = {
        f"group_{i}": _group(scheme, names if len(modules) > 1 else ["Linear"])
        for i, (scheme, names) in enumerate(modules.items())
    }
    formats = {storage_format(scheme) for scheme in modules}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "config_groups": groups,
        "ignore": list(ignore),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _group(scheme: Scheme, targets: list[str]) -> dict[str, Any]:
    return {
        "targets": targets,
        "format": storage_format(scheme),
        "weights": {
            "num_bits": scheme.bits,
            "type": "int",
            "symmetric": scheme.symmetric,
            "strategy": "channel" if scheme.group_size is None else "group",
            "group_size": scheme.group_size,
            "dynamic": False,
        },
        "input_activations": _per_token(scheme.activation_bits),
        "output_activations": None,
    }


def _per_token(bits: int | None) -> dict[str, Any] | None:
    """Activations rounded per token at run time need no observer; the default one would be looked for."""
    if bits is None:
        return None
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": "token",
        "dynamic": True,
        "observer": None,
    }


def module_schemes(config: Mapping[str, Any], reader: CheckpointReader) -> dict[str, Scheme]:
    """Quantized module → scheme, from config.json and the tensors that are there.

    A module counts as quantized if it owns packed weights or a weight scale. Targets are matched as
    compressed-tensors does: exact name, then `re:` pattern, then class name. Empty for a 16-bit checkpoint.

    Raises:
        CheckpointError: another quantization method or number format, a damaged block, or a quantized module
            without a group.
    """
    block = config.get("quantization_config")
    if block is None:
        return {}
    if block.get("quant_method") != "compressed-tensors":
        raise CheckpointError(
            f"The checkpoint is quantized with {block.get('quant_method')!r}; "
            "only compressed-tensors can be read."
        )
    try:
        groups = [(group["targets"], _scheme(name, group)) for name, group in _groups(block).items()]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"quantization_config in {reader.folder / 'config.json'} is damaged ({error!r}). "
            "Download the folder again, or quantize the model again."
        ) from error
    modules = dict.fromkeys(
        name.rpartition(".")[0] for name in reader.names if name.endswith(_WEIGHT_SUFFIXES)
    )
    return {module: _resolve(module, groups) for module in modules}


def _groups(block: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    groups = dict(block["config_groups"])
    for name, group in groups.items():
        if not isinstance(group, Mapping):
            raise CheckpointError(
                f"quantization_config names the preset {name!r}; only groups that spell out their "
                "weights can be read."
            )
    return groups


def _resolve(module: str, groups: Sequence[tuple[Sequence[str], Scheme]]) -> Scheme:
    """The scheme of the group that matches most narrowly."""
    tests = (
        lambda target: target == module,
        lambda target: target.startswith("re:") and re.match(target[3:], module) is not None,
        lambda target: target == "Linear",
    )
    for matches in tests:
        for targets, scheme in groups:
            if any(map(matches, targets)):
                return scheme
    raise CheckpointError(f"{module} has packed weights, but no group of quantization_config targets it")


def _scheme(name: str, group: Mapping[str, Any]) -> Scheme:
    """The scheme that a config group spells out."""
    weights, inputs = group.get("weights") or {}, group.get("input_activations")
    size = int(weights.get("group_size") or -1)
    strategy = weights.get("strategy") or ("group" if size > 0 else "channel")
    bits, symmetric = int(weights.get("num_bits", 8)), bool(weights.get("symmetric", True))
    readable = (
        weights.get("type", "int") == "int"
        and strategy in ("group", "channel")
        and weights.get("actorder") not in ("group", "dynamic")
        and (inputs is None or _is_w8a8(bits, symmetric, strategy, inputs))
    )
    if not readable:
        raise CheckpointError(
            f"quantization_config group {name!r} is neither weight-only int nor int8 with per-token int8 "
            f"activations: weights {weights}, input_activations {inputs}"
        )
    group_size = size if strategy == "group" else None
    return Scheme(_preset_name(bits, symmetric, inputs), bits, group_size, symmetric, 8 if inputs else None)


def _is_w8a8(bits: int, symmetric: bool, strategy: str, inputs: Mapping[str, Any]) -> bool:
    keys = ("num_bits", "type", "symmetric", "strategy", "dynamic")
    per_token = tuple(inputs.get(key) for key in keys) == (8, "int", True, "token", True)
    return per_token and (bits, symmetric, strategy) == (8, True, "channel")


def _preset_name(bits: int, symmetric: bool, inputs: Mapping[str, Any] | None) -> str:
    name = f"W{bits}A{8 if inputs else 16}"
    asymmetric = f"{name}_ASYM"
    return asymmetric if not symmetric and asymmetric in PRESETS else name
