"""One weight file: the bytes that safetensors itself would write, and their hash."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from qdeploy.checkpoint.tensor_file import NAMES, system_errors, write_tensors
from qdeploy.errors import OutputError
from qdeploy.files import sha256_file


def tensors() -> dict[str, Tensor]:
    """Every dtype, in an order that is not the file's, and shapes that are easily got wrong."""
    found = {f"{name}.{i}": torch.arange(i).to(dtype) for dtype, name in NAMES.items() for i in (3, 0, 1)}
    return {"last.é": torch.ones(2, 3), **found, "scalar": torch.tensor(0.5)}


def test_the_bytes_are_those_of_safetensors(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    digest = write_tensors(file, tensors())
    assert file.read_bytes() == save(tensors(), metadata={"format": "pt"})
    assert digest == sha256_file(file)
    assert list(tmp_path.iterdir()) == [file]


def test_views_of_any_strides_are_written_as_they_read(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    views = {"turned": whole.T, "one": whole[1:2, 2].expand(1), "part": whole[1:, 1:]}
    write_tensors(tmp_path / "model.safetensors", views)
    plain = {name: view.clone(memory_format=torch.contiguous_format) for name, view in views.items()}
    assert (tmp_path / "model.safetensors").read_bytes() == save(plain, metadata={"format": "pt"})


def test_a_full_disk_leaves_no_half_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.tmp").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"Cannot write .*model\.safetensors: the disk is full"):
        write_tensors(tmp_path / "model.safetensors", tensors())
    assert list(tmp_path.iterdir()) == []


def test_what_safetensors_says_of_the_system_is_raised_as_its_error() -> None:
    # What it raises on a full tmpfs, word for word.
    full = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(OSError) as caught, system_errors():
        raise SafetensorError(full)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(SafetensorError, match="of another kind"), system_errors():
        raise SafetensorError("of another kind")
