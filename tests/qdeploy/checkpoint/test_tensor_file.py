"""One weight file, written whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from qdeploy.checkpoint.tensor_file import system_errors, write_tensors
from qdeploy.files import sha256_file


def test_the_file_holds_the_tensors_and_has_the_hash_that_is_told(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"turned": whole.clone().T, "part": whole[1:, 1:], "codes": torch.arange(3, dtype=torch.uint8)}
    file = tmp_path / "model.safetensors"
    digest = write_tensors(file, tensors)
    found = load_file(file)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert digest == sha256_file(file)
    assert list(tmp_path.iterdir()) == [file]


def test_what_safetensors_says_of_the_system_is_raised_as_its_error() -> None:
    # What it raises on a full tmpfs, word for word.
    full = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(OSError) as caught, system_errors():
        raise SafetensorError(full)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(SafetensorError, match="of another kind"), system_errors():
        raise SafetensorError("of another kind")
