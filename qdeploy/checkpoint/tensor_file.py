"""One safetensors file, written whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from qdeploy.errors import disk_errors
from qdeploy.files import fsync_folder


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write under a temporary name, flush to disk, rename over `path`.

    Args:
        tensors: name → contiguous tensor; none may share memory with another.

    Raises:
        OutputError: the disk is full or read-only.
    """
    temporary = path.with_name(path.name + ".tmp")
    with disk_errors(path):
        try:
            save_file(dict(tensors), temporary, metadata={"format": "pt"})
        except SafetensorError as error:
            raise _os_error(error) from error
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)


def _os_error(error: SafetensorError) -> Exception:
    """safetensors reports the system's errors as text; get the number back so that it can be explained."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else error
