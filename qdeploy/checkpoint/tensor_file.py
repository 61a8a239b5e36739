"""One safetensors file, written whole or not at all, and hashed as it is written."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from torch import Tensor

from qdeploy.errors import disk_errors
from qdeploy.files import fsync_folder

NAMES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""dtype → what safetensors calls it, in the order in which its own writer puts tensors: the widest first."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write under a temporary name, flush to disk, rename over `path`; returns the file's hex SHA-256.

    The bytes are those that safetensors' own writer makes, which does not tell their hash. Nothing is copied:
    memory holds the tensors and no more.

    Raises:
        OutputError: the disk is full or read-only.
    """
    temporary = path.with_name(path.name + ".tmp")
    with disk_errors(path), _removed_on_failure(temporary):
        with temporary.open("wb") as file:
            digest = _write(file, tensors)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    return digest


def _write(file: BinaryIO, tensors: Mapping[str, Tensor]) -> str:
    order = list(NAMES)
    ordered = dict(sorted(tensors.items(), key=lambda item: (order.index(item[1].dtype), item[0])))
    digest = hashlib.sha256()
    parts: list[bytes | memoryview] = [_header(ordered), *map(_bytes, ordered.values())]
    with ThreadPoolExecutor(1) as hashing:
        for part in parts:
            hashing.submit(digest.update, part)
            file.write(part)
    return digest.hexdigest()


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    """Length and JSON, with spaces up to a multiple of eight."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> memoryview:
    # A dimension of size 1 may have any stride, and no view as bytes then.
    flat = tensor.detach().cpu().contiguous().as_strided((tensor.numel(),), (1,))
    return flat.view(torch.uint8).numpy().data


@contextmanager
def _removed_on_failure(file: Path) -> Iterator[None]:
    """Half a shard must not take the room that is left on a full disk."""
    try:
        yield
    except BaseException:
        file.unlink(missing_ok=True)
        raise


@contextmanager
def system_errors() -> Iterator[None]:
    """safetensors reports the system's errors as text; raise them as the OSError that they are."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
