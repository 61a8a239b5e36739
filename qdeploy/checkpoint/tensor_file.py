"""One safetensors file, written whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from qdeploy.errors import disk_errors
from qdeploy.files import fsync_folder, sha256_file


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write, flush to disk, rename over `path`; returns the file's hex SHA-256.

    Arguments and errors are `begin_tensors`'s.
    """
    begin_tensors(path, tensors)
    return finish_tensors(path)


def begin_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write under a temporary name; `finish_tensors` does the rest, which takes no memory.

    Args:
        path: of the file.
        tensors: name → tensor; none may share memory with another.

    Raises:
        OutputError: the disk is full or read-only.
    """
    temporary = _temporary(path)
    with disk_errors(path), _removed_on_failure(temporary):
        temporary.touch()
        mode = temporary.stat().st_mode
        with system_errors():
            save_file(
                {name: t.contiguous() for name, t in tensors.items()}, temporary, metadata={"format": "pt"}
            )
        # safetensors makes files that only their owner can read, which a server's container is not.
        temporary.chmod(mode)


def finish_tensors(path: Path) -> str:
    """Flush what was begun to disk, rename it over `path`; returns the file's hex SHA-256.

    Raises:
        OutputError: the disk is full or read-only.
    """
    temporary = _temporary(path)
    with disk_errors(path), _removed_on_failure(temporary):
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        digest = sha256_file(temporary)
        temporary.replace(path)
        fsync_folder(path.parent)
    return digest


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
