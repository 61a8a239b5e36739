"""The config of ModelOpt's folders: hf_quant_config.json, and the block in config.json that repeats it.

TensorRT-LLM follows the file, vLLM the block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qdeploy import __version__
from qdeploy.errors import CheckpointError
from qdeploy.formats.modelopt import INT4, INT4_FP8, INT8, PAIRED, SQ, algorithm, scheme_of
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.schemes import Scheme

FILE = "hf_quant_config.json"
MIXED = "MIXED_PRECISION"
PRODUCER = {"name": "modelopt", "version": f"qdeploy {__version__}"}
"""TensorRT-LLM knows the format by the name."""

_EIGHT: dict[str, Any] = {"dynamic": False, "num_bits": 8, "type": "float"}
_INTEGER: dict[str, Any] = {"dynamic": False, "num_bits": 8, "type": "int"}
_CHANNEL = {"strategy": "channel"}
_NVFP4: dict[str, Any] = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
_MXFP8 = {**_EIGHT, "group_size": 32}
GROUPS: Mapping[str, dict[str, Any]] = {
    "FP8": {"weights": _EIGHT, "input_activations": _EIGHT},
    "NVFP4": {"weights": _NVFP4, "input_activations": _NVFP4},
    "W4A16_NVFP4": {"weights": _NVFP4},
}
"""Algorithms for which the block has a group, as ModelOpt writes it."""
MIXED_GROUPS: Mapping[str, dict[str, Any]] = {
    **GROUPS,
    "FP8_PER_CHANNEL_PER_TOKEN": {"weights": _EIGHT | _CHANNEL, "input_activations": _EIGHT},
    "MXFP8": {"weights": _MXFP8, "input_activations": _MXFP8},
    INT8: {"weights": _INTEGER},
    SQ: {"weights": _INTEGER | _CHANNEL, "input_activations": _INTEGER},
}
"""The same beside others, where more of them have one."""


def schemes(block: Mapping[str, Any], reader: CheckpointReader) -> dict[str, Scheme]:
    """Quantized module → scheme: those that own a weight_scale.

    Raises:
        CheckpointError: an algorithm that cannot be read.
    """
    fields = block.get("quantization", block)
    layers = fields.get("quantized_layers") or {}
    modules = [name.removesuffix(".weight_scale") for name in reader.names if name.endswith(".weight_scale")]
    return {module: _scheme(layers.get(module, fields), module, reader) for module in modules}


def _scheme(fields: Mapping[str, Any], module: str, reader: CheckpointReader) -> Scheme:
    name = fields.get("quant_algo")
    if not isinstance(name, str) or name == MIXED:
        raise CheckpointError(f"{reader.folder}: the config names no algorithm for {module}.")
    size = fields.get("group_size")
    if size is None and name.upper() in PAIRED:
        # The block in config.json has none, in ModelOpt's own folders.
        size = reader.shape(f"{module}.weight")[1] // reader.shape(f"{module}.weight_scale")[1]
    return scheme_of(name, size)


def quantization(modules: Mapping[str, Scheme], kept: Sequence[str], kv_cache: str | None) -> dict[str, Any]:
    """What both places say: hf_quant_config.json under "quantization"."""
    each = {module: _layer(scheme) for module, scheme in modules.items()}
    distinct = {tuple(sorted(layer.items())) for layer in each.values()}
    common: dict[str, Any] = {
        "kv_cache_quant_algo": kv_cache.upper() if kv_cache else None,
        "exclude_modules": sorted(kept),
    }
    if len(distinct) == 1:
        return dict(next(iter(distinct))) | common
    return {"quant_algo": MIXED, "quantized_layers": each} | common


def _layer(scheme: Scheme) -> dict[str, Any]:
    name = algorithm(scheme)
    if name in PAIRED:
        return {
            "quant_algo": name,
            "group_size": scheme.group_size,
            "has_zero_point": False,
            "pre_quant_scale": True,
        }
    if scheme.group_size is None or scheme.name in ("FP8_BLOCK", "MXFP4"):  # of which ModelOpt writes no size
        return {"quant_algo": name}
    return {"quant_algo": name, "group_size": scheme.group_size}


def beside(found: Mapping[str, Any]) -> dict[str, Any]:
    """hf_quant_config.json, from `quantization`."""
    return {"producer": PRODUCER, "quantization": dict(found)}


def block(found: Mapping[str, Any]) -> dict[str, Any]:
    """`quantization_config` of config.json, from `quantization`."""
    written: dict[str, Any] = {
        "quant_method": "modelopt",
        "quant_algo": found["quant_algo"],
        "producer": PRODUCER,
        "ignore": found["exclude_modules"],
    }
    if found["kv_cache_quant_algo"] is not None:
        written["kv_cache_scheme"] = _EIGHT
    if "quantized_layers" in found:
        written["quantized_layers"] = found["quantized_layers"]
        written["config_groups"] = _mixed_groups(found["quantized_layers"])
    if found["quant_algo"] in GROUPS:
        written["config_groups"] = {"group_0": {"targets": ["Linear"], **GROUPS[found["quant_algo"]]}}
    elif "group_size" in found:
        written["group_size"] = found["group_size"]  # where TensorRT-LLM's reader of the block looks for it
    return written


def _mixed_groups(layers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A group for each kind of layer."""
    kinds: dict[tuple[str, int | None], list[str]] = {}
    for module, layer in layers.items():
        kinds.setdefault((layer["quant_algo"], layer.get("group_size")), []).append(module)
    return {
        f"group_{i}": {**_mixed_group(*kind), "targets": sorted(modules)}
        for i, (kind, modules) in enumerate(kinds.items())
    }


def _mixed_group(name: str, size: int | None) -> dict[str, Any]:
    if name == INT4:
        return {"weights": {"dynamic": False, "num_bits": 4, "type": "int", "group_size": size}}
    if name == INT4_FP8:  # whose integers ModelOpt's converter calls floats
        grouped = {"type": "float", "group_size": size, "dynamic": False}
        return {"weights": {"num_bits": 4, **grouped}, "input_activations": {"num_bits": 8, **grouped}}
    return MIXED_GROUPS.get(name, {"quant_algo": name})
