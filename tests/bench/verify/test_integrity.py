import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from qdeploy.bench.integrity import check_integrity
from qdeploy.errors import VerificationError

LAYER = "model.layers.1.mlp.up_proj"


@pytest.fixture
def copy(quantized: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(quantized, tmp_path / "copy"))


def file_with(folder: Path, tensor: str) -> Path:
    return next(path for path in folder.glob("*.safetensors") if tensor in load_file(path))


def swap_two_nibbles(folder: Path) -> None:
    """Exchange two neighbouring codes that differ, in one word of one layer."""
    name = f"{LAYER}.weight_packed"
    path = file_with(folder, name)
    tensors = {key: value.clone() for key, value in load_file(path).items()}
    packed = tensors[name].view(-1)
    low, high = packed & 0xF, packed >> 4 & 0xF
    at = int((low != high).nonzero()[0])
    packed[at] = packed[at] - low[at] - (high[at] << 4) + high[at] + (low[at] << 4)
    save_file(tensors, path, metadata={"format": "pt"})


def test_an_untouched_checkpoint_is_what_was_quantized(quantized: Path) -> None:
    found = check_integrity(quantized)
    found.require(quantized)
    assert found.layers == 14
    assert found.files == len(list(quantized.glob("*.safetensors")))


def test_two_swapped_nibbles_are_found_and_the_layer_is_named(copy: Path) -> None:
    swap_two_nibbles(copy)
    found = check_integrity(copy)
    assert list(found.changed_layers) == [LAYER]
    with pytest.raises(VerificationError, match=LAYER) as caught:
        found.require(copy)
    assert caught.value.exit_code == 1


def test_a_changed_16_bit_tensor_is_found_in_its_file(copy: Path) -> None:
    path = file_with(copy, "model.norm.weight")
    tensors = load_file(path)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 2
    save_file(tensors, path, metadata={"format": "pt"})
    found = check_integrity(copy)
    assert not found.changed_layers
    with pytest.raises(VerificationError, match=path.name):
        found.require(copy)


def test_a_checkpoint_without_manifest_has_nothing_to_compare_with(copy: Path) -> None:
    (copy / "qdeploy.json").unlink()
    found = check_integrity(copy)
    found.require(copy)
    assert found.layers == found.files == 0
