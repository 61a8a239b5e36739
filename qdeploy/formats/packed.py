"""Packed checkpoints of any format: which one it is, how its layers are stored, and one of them decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from qdeploy.errors import CheckpointError
from qdeploy.files import read_json
from qdeploy.formats import (
    awq,
    bitsandbytes,
    compressed_tensors,
    ct_config,
    ct_layout,
    fbgemm,
    fp8,
    gptq,
    gptq_config,
    modelopt,
    modelopt_config,
)
from qdeploy.formats.format import Block, Config, Format, ReadFormat
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.quantized import QuantizedLinear
from qdeploy.schemes import Scheme

BESIDE = ("quantize_config.json", "quant_config.json", modelopt_config.FILE)
"""Where tools keep it that do not, or not all of it, write it into config.json."""


def _in_float16(q: QuantizedLinear) -> QuantizedLinear:
    return replace(q, scales=q.scales.to(torch.float16))


def _gptq(name: str, version: gptq.Version) -> Format:
    def config(schemes: Mapping[str, Scheme], kept: Sequence[str], _: str | None) -> Config:
        block = gptq_config.block(schemes, kept, version)
        return Config(block, {"quantize_config.json": block})

    return Format(
        name,
        gptq.SUFFIXES,
        gptq_config.schemes,
        gptq.shape,
        lambda _, scheme, n, k: gptq.layout(scheme, n, k),
        lambda tensors, scheme, block: gptq.unpack(tensors, scheme, gptq_config.version(block)),
        lambda _, q: gptq.pack(q, version),
        gptq.refusal,
        _in_float16,
        config,
    )


def _modelopt(schemes: Mapping[str, Scheme], kept: Sequence[str], kv_cache: str | None) -> Config:
    found = modelopt_config.quantization(schemes, kept, kv_cache)
    return Config(modelopt_config.block(found), {modelopt_config.FILE: modelopt_config.beside(found)})


FORMATS = {
    each.name: each
    for each in (
        Format(
            "compressed-tensors",
            ct_layout.SUFFIXES,
            lambda block, reader: ct_config.module_schemes({"quantization_config": block}, reader),
            ct_layout.shape,
            lambda _, scheme, n, k: ct_layout.stored(scheme, n, k),
            lambda tensors, scheme, _: compressed_tensors.unpack(tensors, scheme),
            lambda _, q: compressed_tensors.pack(q),
            ct_layout.refusal,
            lambda q: q,
            lambda schemes, kept, kv_cache: Config(
                ct_config.quantization_config(schemes, kept, kv_cache=kv_cache)
            ),
            compressed_tensors.cache,
        ),
        _gptq("gptq", 1),
        _gptq("gptq_v2", 2),
        Format(
            "awq",
            awq.SUFFIXES,
            awq.schemes,
            awq.shape,
            lambda _, scheme, n, k: awq.layout(scheme, n, k),
            lambda tensors, scheme, _: awq.unpack(tensors, scheme),
            lambda _, q: awq.pack(q),
            awq.refusal,
            _in_float16,
            lambda schemes, kept, _: Config(awq.block(schemes, kept)),
        ),
        Format(
            "modelopt",
            modelopt.SUFFIXES,
            modelopt_config.schemes,
            modelopt.shape,
            modelopt.layout,
            lambda tensors, scheme, _: modelopt.unpack(tensors, scheme),
            modelopt.pack,
            modelopt.refusal,
            modelopt.nearest,
            _modelopt,
            modelopt.cache,
        ),
        Format(
            "fp8",
            fp8.SUFFIXES,
            fp8.schemes,
            fp8.shape,
            lambda _, scheme, n, k: fp8.layout(scheme, n, k),
            lambda tensors, scheme, _: fp8.unpack(tensors, scheme),
            lambda _, q: fp8.pack(q),
            fp8.refusal,
            lambda q: q,
            lambda schemes, kept, _: Config(fp8.block(schemes, kept)),
        ),
    )
}
"""By name."""

READ_ONLY = {
    each.name: each
    for each in (
        ReadFormat(
            "fbgemm_fp8",
            fbgemm.SUFFIXES,
            fbgemm.schemes,
            fbgemm.shape,
            lambda _m, _s, n, k: fbgemm.layout(n, k),
            lambda tensors, scheme, _: fbgemm.unpack(tensors, scheme),
        ),
        ReadFormat(
            "bitsandbytes",
            bitsandbytes.SUFFIXES,
            bitsandbytes.schemes,
            bitsandbytes.shape,
            None,
            lambda tensors, scheme, _: bitsandbytes.unpack(tensors, scheme),
        ),
    )
}
"""By name, which is their `quant_method`."""


class Packed:
    """A folder's quantized layers.

    Attributes:
        reader: the folder.
        format: None for a 16-bit model.
        schemes: quantized module → scheme.

    Raises:
        CheckpointError: a format that cannot be read, or a damaged block.
    """

    def __init__(self, reader: CheckpointReader) -> None:
        self.reader, self._block = reader, block_of(reader)
        self.format = format_of(self._block) if self._block is not None else None
        self.schemes = self.format.schemes(self._block, reader) if self.format and self._block else {}

    @property
    def tensors(self) -> dict[str, str]:
        """Tensor → the quantized module that owns it; biases are not among them."""
        suffixes = self.format.suffixes if self.format else ()
        names = {f"{module}.{suffix}": module for module in self.schemes for suffix in suffixes}
        return {name: module for name, module in names.items() if name in self.reader}

    @property
    def kept(self) -> list[str]:
        """Linear layers in 16 bits, the head among them."""
        weights = [name.removesuffix(".weight") for name in self.reader.names if name.endswith(".weight")]
        linears = [
            name
            for name in weights
            if name not in self.schemes
            and len(self.reader.shape(f"{name}.weight")) == 2
            and "embed" not in name
        ]
        return list(dict.fromkeys([*linears, *([] if "lm_head" in self.schemes else ["lm_head"])]))

    def shape(self, module: str) -> tuple[int, int]:
        """(N, K) of a quantized layer.

        Raises:
            CheckpointError: the tensor that says so is missing.
        """
        assert self.format is not None
        return self.format.shape(self.reader, module, self.schemes[module])

    def read(self, module: str) -> QuantizedLinear:
        """A quantized layer.

        Raises:
            CheckpointError: its tensors do not fit its scheme; the message names folder and module.
        """
        assert self.format is not None and self._block is not None
        names = {suffix: f"{module}.{suffix}" for suffix in self.format.suffixes}
        tensors = {suffix: self.reader.get(name) for suffix, name in names.items() if name in self.reader}
        try:
            return self.format.unpack(tensors, self.schemes[module], self._block)
        except CheckpointError as error:
            raise CheckpointError(f"{module} in {self.reader.folder} is damaged: {error}.") from error


def block_of(reader: CheckpointReader) -> Block | None:
    """What describes the folder's quantization; None for a 16-bit model.

    Raises:
        CheckpointError: a file beside config.json is not a JSON object.
    """
    block: Block | None = reader.config.get("quantization_config")
    if block is not None:
        return block
    for name in BESIDE:
        if (reader.folder / name).is_file():
            return _beside(reader.folder / name)
    return None


def _beside(path: Path) -> Block:
    try:
        block = read_json(path)
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}. Download it again.") from error
    if not isinstance(block, dict):
        raise CheckpointError(f"{path} holds {type(block).__name__}, not an object.")
    return block


def has_cache_in_fp8(block: Block) -> bool:
    """Whether it says that keys and values are cached in FP8.

    Raises:
        CheckpointError: in another format than 16 bits and FP8.
    """
    fields = block.get("quantization", block)
    scheme, algorithm = fields.get("kv_cache_scheme"), fields.get("kv_cache_quant_algo")
    if isinstance(scheme, dict):
        algorithm = "FP8" if (scheme.get("num_bits"), scheme.get("type")) == (8, "float") else scheme
    elif scheme is not None:
        algorithm = scheme
    if algorithm not in (None, "FP8"):
        raise CheckpointError(f"The cache is quantized as {algorithm}; only FP8 can be read.")
    return algorithm is not None


def format_of(block: Block) -> ReadFormat:
    """The format that a block describes.

    Raises:
        CheckpointError: one that cannot be read.
    """
    method = block.get("quant_method") or block.get("method") or _guessed(block)
    if method in ("gptq", "gptq_marlin", "auto_gptq"):
        return FORMATS["gptq_v2" if gptq_config.version(block) == 2 else "gptq"]
    if method in ("awq", "awq_marlin", "auto_awq"):
        return FORMATS["awq"]
    if method == "compressed-tensors":
        return FORMATS["compressed-tensors"]
    if str(method).startswith("modelopt"):
        return FORMATS["modelopt"]
    if method == "fp8":
        return FORMATS["fp8"]
    if method in READ_ONLY:
        return READ_ONLY[method]
    raise CheckpointError(
        f"The checkpoint is quantized with {method!r}; only {', '.join([*FORMATS, *READ_ONLY])} can be read."
    )


def _guessed(block: Block) -> str | None:
    """Of files that name no method: ModelOpt's a producer, AutoAWQ's have zero_point, AutoGPTQ's desc_act."""
    if (block.get("producer") or {}).get("name") == "modelopt":
        return "modelopt"
    return "awq" if "zero_point" in block else "gptq" if "desc_act" in block else None
