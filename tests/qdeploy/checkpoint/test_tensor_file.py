"""One weight file, written whole or not at all."""

from __future__ import annotations

import errno
import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from qdeploy.checkpoint.tensor_file import room_for, system_errors, write_tensors
from qdeploy.files import sha256_file


@pytest.mark.parametrize("room", [0, 8, 1 << 12])
def test_the_file_holds_the_tensors_and_has_the_hash_that_is_told(tmp_path: Path, room: int) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "odd": torch.arange(3, dtype=torch.uint8),
        "turned": whole.clone().T,
        "part": whole[1:, 1:],
        "scalar": torch.tensor(2.5),
        "same": torch.tensor([[3.5]]).expand(1, 1)[0].expand(2),
        "once": torch.tensor(1.25).expand(4)[:1],
        "halves": torch.tensor([1.5, -2.5, 0.25]).bfloat16(),
        "eighths": torch.tensor([1.0, -448.0]).to(torch.float8_e4m3fn),
        "shape": torch.tensor([3, 4]),
        "none": torch.empty(0, 4),
        "ключ": torch.ones(1),
    }
    file = tmp_path / "model.safetensors"
    digest = write_tensors(file, tensors.items(), room)
    found = load_file(file)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert found[name].float().equal(tensor.float())
    assert digest == sha256_file(file)
    assert list(tmp_path.iterdir()) == [file]


def test_every_tensor_lies_where_its_numbers_may_begin(tmp_path: Path) -> None:
    dtypes = (torch.uint8, torch.int64, torch.bfloat16, torch.float32, torch.int64)
    tensors = {f"{i}": torch.ones(3, dtype=dtype) for i, dtype in enumerate(dtypes)}
    file = tmp_path / "model.safetensors"
    write_tensors(file, tensors.items(), room_for(tensors))
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for name, tensor in tensors.items():
        assert (8 + length + header[name]["data_offsets"][0]) % tensor.element_size() == 0


def test_the_room_that_is_told_is_enough(tmp_path: Path) -> None:
    tensors = {f"model.layers.{i}.mlp.down_proj.weight_packed": torch.ones(1000, 1) for i in range(100)}
    file = tmp_path / "model.safetensors"
    write_tensors(file, tensors.items(), room_for(tensors))
    told = room_for(tensors)
    assert int.from_bytes(file.read_bytes()[:8], "little") == told + -told % 8


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    def made() -> Iterator[tuple[str, torch.Tensor]]:
        for i in range(4):
            assert sum(each() is not None for each in alive) <= 1
            tensor = torch.full((2,), float(i))
            alive.append(weakref.ref(tensor))
            yield f"{i}", tensor
            del tensor

    write_tensors(tmp_path / "model.safetensors", made(), 1 << 10)
    assert len(load_file(tmp_path / "model.safetensors")) == 4


def test_what_safetensors_says_of_the_system_is_raised_as_its_error() -> None:
    # What it raises on a full tmpfs, word for word.
    full = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(OSError) as caught, system_errors():
        raise SafetensorError(full)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(SafetensorError, match="of another kind"), system_errors():
        raise SafetensorError("of another kind")
