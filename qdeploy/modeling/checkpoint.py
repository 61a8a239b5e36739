"""Model folders, read tensor by tensor.

A folder holds `config.json` and either `model.safetensors` or `model.safetensors.index.json` with the shards
it names. Every header is checked when the reader opens, so that a broken download is found before any work;
no tensor is read before it is asked for.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdeploy.errors import CheckpointError
from qdeploy.files import read_json, sha256_file

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth")
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors' dtype names, as far as model folders use them."""


Edit = Callable[[Tensor], Tensor]
"""What is made of a tensor as it is read; shape and dtype stay."""


@dataclass(frozen=True, slots=True)
class Part:
    """The elements at `index` of the stored tensor `name`; all of them where the index is empty."""

    name: str
    index: tuple[int | slice, ...] = ()


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor: `part` of the one that is stored from byte `start` of the file on, in shape `stored`."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    part: Part
    start: int
    stored: tuple[int, ...]


class CheckpointReader:
    """A safetensors model folder.

    Attributes:
        folder: the folder.
        config: the parsed `config.json`.
        files: those with weights.

    Raises:
        CheckpointError: the folder, its config or a shard is missing, truncated or not safetensors.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = _config(folder)
        self.files = _shards(folder)
        self._entries = {name: entry for file in self.files for name, entry in _header(file).items()}
        _check_index(folder, self._entries)
        self._edits: Mapping[str, Edit] = {}
        self._stored: CheckpointReader | None = None

    @property
    def names(self) -> list[str]:
        """Names of all tensors, in file order."""
        return list(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def names_in(self, file: Path) -> list[str]:
        """Names of the tensors of one file, in its order."""
        return [name for name, entry in self._entries.items() if entry.file == file]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor as stored, from the header."""
        return self._entry(name).dtype

    def nbytes(self, name: str) -> int:
        """Bytes that a tensor takes as stored, from the header."""
        return math.prod(self.shape(name)) * self.dtype(name).itemsize

    def get(self, name: str) -> Tensor:
        """The tensor, memory-mapped: nothing is read before it is used, and it must not be written to."""
        entry = self._entry(name)
        part = _mapped(entry)[entry.part.index]
        return self._edits[name](part) if name in self._edits else part

    def edited(
        self, edits: Mapping[str, Edit], copies: Mapping[str, str], config: Mapping[str, Any]
    ) -> CheckpointReader:
        """This checkpoint as if other tensors and another config.json were in its files.

        Args:
            edits: tensor → what is made of it, each time that it is read.
            copies: tensor to add → one in the files that it is a copy of, before edits.
            config: fields of config.json that have other values.
        """
        other = copy.copy(self)
        other._stored = self
        other.config = {**self.config, **config}
        other._entries = self._entries | {name: self._entry(stored) for name, stored in copies.items()}
        other._edits = dict(edits)
        return other

    @property
    def stored(self) -> CheckpointReader:
        """This checkpoint as it is in its files."""
        return self if self._stored is None else self._stored.stored

    def is_edited(self, name: str) -> bool:
        """Whether reading the tensor makes a new one, which takes memory."""
        return name in self._edits

    def rename(self, parts: Mapping[str, Part]) -> None:
        """From here on know parts of stored tensors by other names, and no longer by the stored ones."""
        renamed = {}
        for name, part in parts.items():
            entry = self._entry(part.name)
            shape = torch.empty(entry.shape, device="meta")[part.index].shape
            renamed[name] = replace(entry, shape=tuple(shape), part=part)
        stored = {part.name for part in parts.values()}
        kept = {name: entry for name, entry in self._entries.items() if name not in stored}
        self._entries = kept | renamed

    @cached_property
    def sha256(self) -> str:
        """Hex SHA-256 over config.json and every weight file: one value per content, whatever the dates."""
        return self.sha256_from({file: sha256_file(file) for file in self.files})

    def sha256_from(self, hashes: Mapping[Path, str]) -> str:
        """The same, from the hex SHA-256 of every weight file."""
        config = sha256_file(self.folder / "config.json")
        digests = [bytes.fromhex(each) for each in (config, *(hashes[file] for file in self.files))]
        return hashlib.sha256(b"".join(digests)).hexdigest()

    def _entry(self, name: str) -> _Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise CheckpointError(f"{self.folder} has no tensor {name!r}.") from None


def _mapped(entry: _Entry) -> Tensor:
    """The stored tensor in a mapping of its own, which goes when it goes."""
    size = math.prod(entry.stored) * entry.dtype.itemsize
    if size == 0:
        return torch.empty(entry.stored, dtype=entry.dtype)
    pages: Any = torch.UntypedStorage.from_file(str(entry.file), False, entry.start + size)
    data: Tensor = torch.empty(0, dtype=torch.uint8).set_(pages, entry.start, (size,), (1,))
    # Not every writer aligns what it writes.
    aligned = data if entry.start % entry.dtype.itemsize == 0 else data.clone()
    return aligned.view(entry.dtype).reshape(entry.stored)


def _config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder. Give a model folder or a hub id such as org/name.")
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json, so it is not a Hugging Face model folder.")
    try:
        config = read_json(path)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}. Download it again.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds {type(config).__name__}, not an object.")
    return config


def _shards(folder: Path) -> list[Path]:
    """The weight files, in the order of their names."""
    if (folder / INDEX).is_file():
        names = sorted(set(_weight_map(folder).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{folder} lacks {len(missing)} of {len(names)} shards that {INDEX} names: "
                f"{_some(missing)}. Download them again."
            )
        return [folder / name for name in names]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder} holds pickled weights ({_some(pickles)}), which can run code when loaded; qdeploy "
            "reads safetensors only. Convert a model that you trust: python -c "
            '"from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{folder}', dtype='auto').save_pretrained('{folder}-safetensors')\""
        )
    raise CheckpointError(f"{folder} has neither {SINGLE} nor {INDEX}.")


def _weight_map(folder: Path) -> dict[str, str]:
    try:
        weight_map = read_json(folder / INDEX)["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / INDEX} is not a valid index ({error!r}). Download it again."
        ) from error


def _check_index(folder: Path, entries: dict[str, _Entry]) -> None:
    if not (folder / INDEX).is_file():
        return
    absent = [
        f"{name} in {file}"
        for name, file in _weight_map(folder).items()
        if name not in entries or entries[name].file.name != file
    ]
    if absent:
        raise CheckpointError(
            f"{INDEX} lists {len(absent)} tensors that {folder} does not hold: {_some(absent)}. "
            "Index and shards are of different versions; download the folder again."
        )


def _header(file: Path) -> dict[str, _Entry]:
    """Tensor name → entry of one file, checked against the file's size."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length + 8 > size:
            raise _truncated(file, size, length + 8)
        raw = stream.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        entries = {name: _stored(file, 8 + length, name, tensor) for name, tensor in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file} is not a safetensors file ({error!r} in its header). Download it again."
        ) from error
    if 8 + length + end != size:
        raise _truncated(file, size, 8 + length + end)
    return entries


def _stored(file: Path, begin: int, name: str, tensor: Mapping[str, Any]) -> _Entry:
    """The entry of a tensor as the header has it, whose data begin at byte `begin`."""
    shape, dtype, (start, end) = tuple(tensor["shape"]), DTYPES[tensor["dtype"]], tensor["data_offsets"]
    if start < 0 or end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} has shape {list(shape)} and bytes {start} to {end}")
    return _Entry(file, shape, dtype, Part(name), begin + start, shape)


def _truncated(file: Path, size: int, expected: int) -> CheckpointError:
    return CheckpointError(
        f"{file} is truncated or damaged: its header describes {expected} bytes, it has {size}. "
        "Download it again."
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
