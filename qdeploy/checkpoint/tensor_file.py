"""One safetensors file, written whole or not at all, and tensor by tensor: none is kept to write another.

A safetensors file begins with its header, which is known when the last tensor is. So room is left for it, and
what it does not fill are the spaces that a header may end with.
"""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from torch import Tensor

from qdeploy.errors import disk_errors
from qdeploy.files import fsync_folder, sha256_file
from qdeploy.modeling.checkpoint import DTYPES

NAMES = {dtype: name for name, dtype in DTYPES.items()}

ENTRY = 128
"""Bytes of a header that a tensor takes beside its name; more than one with shapes of seven digits does."""

ALIGNMENT = 8
"""Bytes that the place of a tensor is a multiple of, as the largest dtype wants it."""


def write_tensors(path: Path, tensors: Iterable[tuple[str, Tensor]], room: int) -> str:
    """Write, flush to disk, rename over `path`; returns the file's hex SHA-256.

    Arguments and errors are `begin_tensors`'s.
    """
    begin_tensors(path, tensors, room)
    return finish_tensors(path)


def room_for(names: Iterable[str]) -> int:
    """Bytes that the header of a file with tensors of these names may take."""
    return sum(len(name) + ENTRY for name in names) + ENTRY


def begin_tensors(path: Path, tensors: Iterable[tuple[str, Tensor]], room: int) -> dict[str, int]:
    """Write under a temporary name; `finish_tensors` does the rest, which takes no memory.

    Args:
        path: of the file.
        tensors: name and tensor, in the order that they are written in.
        room: bytes to leave for the header. One that needs more is written for the price of a copy.

    Returns:
        Name → bytes.

    Raises:
        OutputError: the disk is full or read-only.
    """
    temporary = _temporary(path)
    with disk_errors(path), _removed_on_failure(temporary), temporary.open("w+b") as file:
        # The size of the header, eight bytes, comes before it.
        room += -room % ALIGNMENT
        file.seek(8 + room)
        entries = _write(file, tensors)
        header = json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":")).encode()
        missing = max(0, len(header) - room)
        if missing:
            missing += -missing % ALIGNMENT
            _move(file, 8 + room, missing)
        room += missing
        file.seek(0)
        file.write(room.to_bytes(8, "little") + header.ljust(room))
    return {name: entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in entries.items()}


def finish_tensors(path: Path) -> str:
    """Flush what was begun to disk, rename it over `path`; returns the file's hex SHA-256.

    Raises:
        OutputError: the disk is full or read-only.
    """
    temporary = _temporary(path)
    with disk_errors(path), _removed_on_failure(temporary):
        with temporary.open("rb") as file, ThreadPoolExecutor(1) as pool:
            # A processor hashes, and the disk is waited for.
            flushed = pool.submit(os.fsync, file.fileno())
            digest = sha256_file(temporary)
            flushed.result()
        temporary.replace(path)
        fsync_folder(path.parent)
    return digest


def _write(file: BinaryIO, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, dict[str, Any]]:
    """Write the tensors from here on; those that would put the next out of line come last, widest first."""
    entries: dict[str, dict[str, Any]] = {}
    end, late = 0, list[tuple[str, Tensor]]()
    for name, tensor in tensors:
        if tensor.nbytes % ALIGNMENT:
            late.append((name, tensor))
        else:
            entries[name], end = _entry(tensor, end), end + tensor.nbytes
            _write_one(file, tensor)
    for name, tensor in sorted(late, key=lambda each: each[1].element_size(), reverse=True):
        entries[name], end = _entry(tensor, end), end + tensor.nbytes
        _write_one(file, tensor)
    return entries


def _entry(tensor: Tensor, start: int) -> dict[str, Any]:
    return {
        "dtype": NAMES[tensor.dtype],
        "shape": list(tensor.shape),
        "data_offsets": [start, start + tensor.nbytes],
    }


def _write_one(file: BinaryIO, tensor: Tensor) -> None:
    # Of one number the stride may be anything, which no view as bytes takes.
    numbers = tensor.cpu().contiguous().as_strided((tensor.numel(),), (1,))
    file.write(numbers.view(torch.uint8).numpy().data)


def _move(file: BinaryIO, start: int, distance: int) -> None:
    """Move what lies from `start` to the end of the file by so many bytes."""
    end = file.seek(0, os.SEEK_END)
    os.posix_fallocate(
        file.fileno(), end, distance
    )  # a full disk is an error here, and a signal in a mapping
    with mmap.mmap(file.fileno(), 0) as pages:
        pages.move(start + distance, start, end - start)


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


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
