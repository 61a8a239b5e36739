"""`quantization_config` of GPTQ checkpoints, and quantize_config.json beside it: read and written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qdeploy import __version__
from qdeploy.errors import CheckpointError
from qdeploy.formats.gptq import Version
from qdeploy.formats.single import only_scheme
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.schemes import Scheme, identify

VERSIONS: dict[str | None, Version] = {None: 1, "gptq": 1, "gemm": 1, "gptq_v2": 2}
"""`checkpoint_format` → version of its zero points; none is version 1."""

ALIASES = {"bits": ("bits", "w_bit", "wbits"), "group_size": ("group_size", "q_group_size")}


def version(block: Mapping[str, Any]) -> Version:
    """How zero points are stored.

    Raises:
        CheckpointError: in a way of GPTQModel's own or of a tool that is gone.
    """
    name = block.get("checkpoint_format") or block.get("format")
    if name not in VERSIONS:
        raise CheckpointError(f"checkpoint_format {name!r} of GPTQ cannot be read, only gptq and gptq_v2.")
    return VERSIONS[name]


def act_order(block: Mapping[str, Any]) -> bool:
    """Whether columns may be in groups by how much they matter, which vLLM refuses, however they are."""
    return bool(block.get("desc_act"))


def schemes(block: Mapping[str, Any], reader: CheckpointReader) -> dict[str, Scheme]:
    """Quantized module → scheme: those that own a qweight.

    Raises:
        CheckpointError: the block lacks bits, or holds a value that no scheme has.
    """
    modules = [name.removesuffix(".qweight") for name in reader.names if name.endswith(".qweight")]
    rules = list(_rules(block))
    try:
        whole = _scheme(block, Scheme("", 4, 128))
        found = {module: _ruled(module, whole, rules) for module in modules}
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"quantization_config in {reader.folder} is damaged ({error!r}). Download the folder again."
        ) from error
    return {module: identify(scheme) or scheme for module, scheme in found.items()}


def _scheme(fields: Mapping[str, Any], base: Scheme) -> Scheme:
    """`base` with what these fields say."""
    bits = next((int(fields[name]) for name in ALIASES["bits"] if name in fields), base.bits)
    size = next((int(fields[name]) for name in ALIASES["group_size"] if name in fields), base.group_size)
    symmetric = bool(fields.get("sym", base.symmetric))
    if not 2 <= bits <= 8:
        raise ValueError(f"bits {bits}")
    return replace(base, bits=bits, group_size=None if size == -1 else size, symmetric=symmetric)


def _rules(block: Mapping[str, Any]) -> Iterator[tuple[re.Pattern[str], Mapping[str, Any]]]:
    """GPTQModel's `dynamic`: patterns and what they change. Those with "-:" match no module."""
    for pattern, fields in (block.get("dynamic") or {}).items():
        yield re.compile(pattern.removeprefix("+:")), fields


def _ruled(module: str, whole: Scheme, rules: Sequence[tuple[re.Pattern[str], Mapping[str, Any]]]) -> Scheme:
    fields = next((fields for pattern, fields in rules if pattern.match(module)), {})
    return _scheme(fields, whole)


def block(modules: Mapping[str, Scheme], kept: Sequence[str], version: Version) -> dict[str, Any]:
    """The block for layers of one scheme, beside others that stay in 16 bits.

    Raises:
        ConversionError: there are several schemes.
    """
    scheme = only_scheme(modules, "GPTQ")
    name = "gptq_v2" if version == 2 else "gptq"
    written: dict[str, Any] = {
        "quant_method": "gptq",
        "bits": scheme.bits,
        "group_size": scheme.group_size or -1,
        # Where groups are runs of columns it makes no difference, and engines refuse it otherwise.
        "desc_act": False,
        "sym": scheme.symmetric,
        "lm_head": "lm_head" in modules,
        "checkpoint_format": name,
        "format": name,
        "pack_dtype": "int32",
        "meta": {"quantizer": [f"qdeploy:{__version__}"]},
    }
    others = [module for module in kept if module != "lm_head"]
    if others:
        written["dynamic"] = {f"-:^{re.escape(module)}$": {} for module in others}
    return written
