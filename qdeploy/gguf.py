"""GGUF files as a source: block-quantized tensors of llama.cpp, decoded to a 16-bit Hugging Face folder.

transformers decodes the blocks, undoes llama.cpp's permutation of the attention rows and rebuilds config and
tokenizer; this module refuses early what would fail late, and writes the folder whole or not at all.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from qdeploy.checkpoint.folder import OutputFolder
from qdeploy.checkpoint.tensor_file import system_errors
from qdeploy.errors import CheckpointError, UsageError, disk_errors
from qdeploy.files import read_json, write_json
from qdeploy.progress import console

MAGIC = b"GGUF"
READABLE = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K", "Q6_K")
"""Tensor types that can be imported, by their ggml names."""


@dataclass(frozen=True, slots=True)
class GgufSummary:
    """What a GGUF file says of itself, and what became of it.

    Attributes:
        types: how many tensors are of which ggml type.
        kept: of the layers whose codes were kept, the same.
    """

    architecture: str
    types: dict[str, int]
    kept: dict[str, int] = field(default_factory=dict)


def import_gguf(path: Path, output: Path) -> GgufSummary:
    """Write the model in a GGUF file as a bfloat16 folder with its tokenizer.

    Needs memory for the whole model in bfloat16, and the extra `gguf`.

    Args:
        path: the .gguf file; not one of several parts.
        output: folder to make; new or empty.

    Raises:
        UsageError: the extra is not installed.
        CheckpointError: not a GGUF file, damaged, or with tensors or an architecture that cannot be read.
        OutputError: the output is in use or the disk is full.
    """
    summary = read_summary(path)
    with OutputFolder(output) as folder:
        folder.clear()
        try:
            decode(path, folder.contents)
            folder.publish()
        except BaseException:
            folder.discard()
            raise
    return summary


def decode(path: Path, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write the model and its tokenizer into a folder that is there.

    Raises:
        CheckpointError: transformers cannot read the model or the tokenizer.
        OutputError: the disk is full or read-only.
    """
    console.print(f"Decoding the weights of {path.name} …", highlight=False)
    model = _load_model(path, dtype)
    console.print("Writing weights and tokenizer …")
    with disk_errors(folder), system_errors():
        model.save_pretrained(folder)
        _load_tokenizer(path).save_pretrained(folder)
        _tidy(folder)


def read_summary(path: Path) -> GgufSummary:
    """Read and check the header: that the file is whole and holds nothing that cannot be decoded.

    Raises:
        UsageError: the extra `gguf` is not installed.
        CheckpointError: not a GGUF file, damaged, one of several parts, or with unreadable tensor types.
    """
    _require_extra()
    _check_magic(path)
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        types = Counter(tensor.tensor_type.name for tensor in reader.tensors)
        architecture = str(reader.fields["general.architecture"].contents())
        parts = reader.fields.get("split.count")
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise CheckpointError(
            f"{path} is a truncated or damaged GGUF file of {path.stat().st_size} bytes ({error}). "
            "Download it again."
        ) from error
    if parts is not None and parts.contents() > 1:
        raise CheckpointError(
            f"{path} is one of {parts.contents()} parts. Join them with llama.cpp's "
            "`llama-gguf-split --merge` and import the result."
        )
    _check_types(path, types)
    return GgufSummary(architecture, dict(types))


def _require_extra() -> None:
    try:
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(
            f"Reading GGUF needs the package {error.name}: pip install 'qdeploy[gguf]'"
        ) from error


def _check_magic(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file.")
    with path.open("rb") as file:
        start = file.read(4)
    if start != MAGIC:
        raise CheckpointError(f"{path} is not a GGUF file: it begins with {start!r}, not {MAGIC!r}.")


def _check_types(path: Path, types: Counter[str]) -> None:
    unreadable = {name: count for name, count in types.items() if name not in READABLE}
    if unreadable:
        found = ", ".join(f"{count} tensors of type {name}" for name, count in unreadable.items())
        raise CheckpointError(f"{path} holds {found}. Types that can be imported: {', '.join(READABLE)}.")


def _load_model(path: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM, GgufConfig

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=dtype,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
        )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise CheckpointError(f"transformers cannot read the model in {path}: {error}") from error
    if report["missing_keys"]:
        # transformers fills what is missing with random numbers.
        raise CheckpointError(f"{path} lacks weights of its model: {sorted(report['missing_keys'])}")
    return model


def _load_tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise CheckpointError(f"transformers cannot read the tokenizer in {path}: {error}") from error


def _tidy(folder: Path) -> None:
    """Drop transformers' private keys and local flags; make the weights readable and safe on disk."""
    for path in folder.glob("*config.json"):
        content = read_json(path)
        traces = {key for key in content if key.startswith("_")} | {"is_local", "local_files_only"}
        write_json(path, {key: value for key, value in content.items() if key not in traces})
    for path in folder.glob("*.safetensors"):
        path.chmod((folder / "config.json").stat().st_mode)
        with path.open("rb") as file:
            os.fsync(file.fileno())
