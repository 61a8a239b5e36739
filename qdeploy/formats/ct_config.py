"""`quantization_config` of compressed-tensors: which layer is stored how, written and read.

The block is what compressed-tensors 0.17 to 0.20, transformers 5 and vLLM 0.32 parse; they refuse unknown
keys inside a group.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from qdeploy.errors import CheckpointError
from qdeploy.formats.ct_layout import storage_format
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.schemes import E2M1, E4M3, Activations, Minifloat, Scheme, Steps, identify

_WEIGHT_SUFFIXES = (".weight_packed", ".weight_scale")
_SCALE_DTYPES = {"e8m0": "torch.uint8", "e4m3": "torch.float8_e4m3fn"}
_ELEMENTS = {8: E4M3, 4: E2M1}


KV_CACHE = {
    "num_bits": 8,
    "type": "float",
    "symmetric": True,
    "strategy": "tensor",
    "dynamic": False,
    "observer": "static_minmax",
}
"""`kv_cache_scheme` for keys and values in E4M3, with one scale of each for an attention."""


def quantization_config(
    schemes: Mapping[str, Scheme], ignore: Sequence[str], *, kv_cache: str | None = None
) -> dict[str, Any]:
    """The `quantization_config` block of config.json.

    Args:
        schemes: quantized module → its scheme.
        ignore: linear modules left in 16 bits, e.g. ["lm_head"].
        kv_cache: "fp8" where the checkpoint has scales for the cache.

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
        "kv_cache_scheme": KV_CACHE if kv_cache else None,
        "global_compression_ratio": None,
    }


def _group(scheme: Scheme, targets: list[str]) -> dict[str, Any]:
    return {
        "targets": targets,
        "format": storage_format(scheme),
        "weights": _weights(scheme),
        "input_activations": scheme.activations and _inputs(scheme.activations),
        "output_activations": None,
    }


def _weights(scheme: Scheme) -> dict[str, Any]:
    strategy = "channel" if scheme.group_size is None else "group"
    if scheme.rows != 1:
        strategy = "tensor" if scheme.rows is None else "block"
    elif scheme.steps == "e4m3":
        strategy = "tensor_group"
    grouped = strategy in ("group", "tensor_group")
    written: dict[str, Any] = {
        "num_bits": scheme.bits,
        "type": "float" if scheme.element else "int",
        "symmetric": scheme.symmetric,
        "strategy": strategy,
        "group_size": scheme.group_size if grouped else None,
        "dynamic": False,
    }
    if strategy == "block":
        written["block_structure"] = [scheme.rows, scheme.group_size]
    return written | _scale_dtype(scheme.steps)


def _inputs(activations: Activations) -> dict[str, Any]:
    """Activations rounded with scales of their own need no observer; the default one would be looked for."""
    element, per, local = activations.element, activations.per, activations.steps == "e4m3"
    written: dict[str, Any] = {
        "num_bits": element.bits if element else 8,
        "type": "float" if element else "int",
        "symmetric": True,
        "strategy": ("tensor_group" if local else "group") if isinstance(per, int) else per,
        "dynamic": "local" if local else activations.dynamic,
        "observer": None if activations.dynamic else "static_minmax",
    }
    if isinstance(per, int):
        written["group_size"] = per
    return written | _scale_dtype(activations.steps)


def _scale_dtype(steps: Steps) -> dict[str, str]:
    return {"scale_dtype": _SCALE_DTYPES[steps]} if steps in _SCALE_DTYPES else {}


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
    found = None
    with suppress(KeyError, ValueError):
        if weights.get("actorder") not in ("group", "dynamic"):
            found = identify(_read_weights(weights, inputs and _read_inputs(inputs)))
    if found is None:
        raise CheckpointError(
            f"quantization_config group {name!r} is none of the number formats that can be read "
            f"(`qdeploy methods` lists them): weights {weights}, input_activations {inputs}"
        )
    return found


def _read_weights(weights: Mapping[str, Any], activations: Activations | None) -> Scheme:
    element, bits, strategy, size, steps = _number(weights)
    rows: int | None = 1
    if strategy == "tensor":
        rows = None
    elif strategy == "block":
        rows, size = weights["block_structure"]
    return Scheme("", bits, size, bool(weights.get("symmetric", True)), activations, element, steps, rows)


def _read_inputs(inputs: Mapping[str, Any]) -> Activations:
    element, bits, strategy, size, steps = _number(inputs)
    if (element is None and bits != 8) or not inputs.get("symmetric", True):
        raise ValueError(f"activations {inputs}")
    per = size if size is not None else strategy
    return Activations(element, per, inputs.get("dynamic") is True, steps)  # type: ignore[arg-type]


def _number(args: Mapping[str, Any]) -> tuple[Minifloat | None, int, str, int | None, Steps]:
    """Element, bits, strategy, group size and steps out of what compressed-tensors calls QuantizationArgs."""
    bits, size = int(args.get("num_bits", 8)), int(args.get("group_size") or -1)
    strategy = args.get("strategy") or ("group" if size > 0 else "channel")
    if strategy not in ("tensor", "channel", "group", "block", "token", "tensor_group"):
        raise ValueError(f"strategy {strategy!r}")
    element = _ELEMENTS[bits] if args.get("type", "int") == "float" else None
    steps: Steps = "e4m3" if strategy == "tensor_group" else "bfloat16"
    # MXFP4 of compressed-tensors before 0.13 does not name the type of its scales.
    if args.get("scale_dtype") == _SCALE_DTYPES["e8m0"] or (element == E2M1 and strategy == "group"):
        steps = "e8m0"
    return element, bits, strategy, size if size > 0 else None, steps
