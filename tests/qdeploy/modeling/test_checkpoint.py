"""Model folders: what is read, and what a broken one says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qdeploy.errors import CheckpointError
from qdeploy.files import sha256_file
from qdeploy.modeling.checkpoint import INDEX, SINGLE, CheckpointReader


@pytest.fixture
def single(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of a one-file model that a test may break."""
    return shutil.copytree(tiny_llama, tmp_path / "single")


@pytest.fixture
def sharded(single: Path, tmp_path: Path) -> Path:
    """The same model in two shards."""
    folder = tmp_path / "sharded"
    folder.mkdir()
    shutil.copy(single / "config.json", folder)
    tensors = load_file(single / SINGLE)
    names = sorted(tensors)
    files = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, held in files.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    weight_map = {name: file for file, held in files.items() for name in held}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_every_tensor_is_read_as_stored(single: Path, sharded: Path) -> None:
    expected = load_file(single / SINGLE)
    for folder in (single, sharded):
        reader = CheckpointReader(folder)
        assert sorted(reader.names) == sorted(expected)
        for name, tensor in expected.items():
            assert torch.equal(reader.get(name), tensor)
            assert reader.shape(name) == tensor.shape
            assert reader.dtype(name) == tensor.dtype == torch.bfloat16


def test_the_hash_is_of_the_content(single: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(single, tmp_path / "copy")
    assert CheckpointReader(copy).sha256 == CheckpointReader(single).sha256
    with (copy / SINGLE).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x11")
    assert CheckpointReader(copy).sha256 != CheckpointReader(single).sha256


def test_an_unknown_tensor_is_named(single: Path) -> None:
    with pytest.raises(CheckpointError, match="no tensor 'lm_tail'"):
        CheckpointReader(single).get("lm_tail")


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a folder"):
        CheckpointReader(tmp_path / "nowhere")


def test_a_folder_without_config(single: Path) -> None:
    (single / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        CheckpointReader(single)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_config(single: Path, text: str) -> None:
    (single / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        CheckpointReader(single)


def test_a_folder_without_weights(single: Path) -> None:
    (single / SINGLE).unlink()
    with pytest.raises(CheckpointError, match="neither"):
        CheckpointReader(single)


def test_pickled_weights_are_refused_with_the_way_out(single: Path) -> None:
    (single / SINGLE).rename(single / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"(?s)pytorch_model\.bin.*safetensors only.*save_pretrained"):
        CheckpointReader(single)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of 2 shards .*model-2\.safetensors"):
        CheckpointReader(sharded)


@pytest.mark.parametrize("kept", [4, 40, 5000])
def test_a_truncated_shard_says_both_sizes(single: Path, kept: int) -> None:
    data = (single / SINGLE).read_bytes()[:kept]
    (single / SINGLE).write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"truncated or damaged: .* bytes, it has {kept}"):
        CheckpointReader(single)


def test_a_file_that_is_not_safetensors(single: Path) -> None:
    (single / SINGLE).write_bytes((8).to_bytes(8, "little") + b"GGUF    ")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        CheckpointReader(single)


def test_a_tensor_that_only_the_index_knows(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["model.layers.9.mlp.up_proj.weight"] = "model-1.safetensors"
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"1 tensors .* model\.layers\.9\.mlp"):
        CheckpointReader(sharded)


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": 3}'])
def test_a_broken_index(sharded: Path, text: str) -> None:
    (sharded / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match="not a valid index"):
        CheckpointReader(sharded)


def test_edits_copies_and_another_config_change_no_file(single: Path) -> None:
    reader, name = CheckpointReader(single), "model.norm.weight"
    other = reader.edited({name: torch.neg, "copy": torch.abs}, {"copy": name}, {"tie_word_embeddings": None})
    assert torch.equal(other.get(name), -reader.get(name))
    assert torch.equal(other.get("copy"), reader.get(name).abs())
    assert other.shape("copy") == reader.shape(name)
    assert other.names == [*reader.names, "copy"]
    assert other.config == {**reader.config, "tie_word_embeddings": None}
    assert other.sha256 == reader.sha256
    assert other.stored is reader.stored is reader
    assert other.is_edited("copy")
    assert not reader.is_edited(name)
    with pytest.raises(CheckpointError, match="no tensor 'absent'"):
        reader.edited({}, {"copy": "absent"}, {})


def write_raw(file: Path, header: dict[str, object], padding: int, data: bytes) -> None:
    """A safetensors file made by hand, with `padding` spaces after its header."""
    text = json.dumps(header).encode() + b" " * padding
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize("padding", range(4))
def test_tensors_need_not_be_aligned(single: Path, padding: int) -> None:
    value = torch.tensor([1.5, -2.0])
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    write_raw(single / SINGLE, {"x": entry}, padding, value.numpy().tobytes())
    assert torch.equal(CheckpointReader(single).get("x"), value)


@pytest.mark.parametrize("offsets", [[0, 4], [0, 12], [-4, 4]])
def test_a_header_whose_bytes_do_not_fit_its_shapes(single: Path, offsets: list[int]) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": offsets}
    write_raw(single / SINGLE, {"x": entry}, 0, bytes(offsets[1]))
    with pytest.raises(CheckpointError, match=r"not a safetensors file .*x has shape \[2\] and bytes"):
        CheckpointReader(single)


def test_a_tensor_is_a_mapping_of_its_own(single: Path) -> None:
    """So that what was read of a file is given back tensor by tensor."""
    reader = CheckpointReader(single)
    name = reader.names[0]
    assert reader.get(name).data_ptr() != reader.get(name).data_ptr()
    mapped = reader.get(name)
    assert str(single / SINGLE) in Path("/proc/self/maps").read_text()
    del mapped
    assert str(single / SINGLE) not in Path("/proc/self/maps").read_text()


def test_what_a_file_holds(sharded: Path) -> None:
    reader = CheckpointReader(sharded)
    names = [reader.names_in(file) for file in reader.files]
    assert [name for part in names for name in part] == reader.names
    assert all(part == list(load_file(file)) for part, file in zip(names, reader.files, strict=True))
    assert all(reader.nbytes(name) == reader.get(name).nbytes for name in reader.names)
    hashes = {file: sha256_file(file) for file in reader.files}
    assert reader.sha256_from(hashes) == reader.sha256
    assert reader.sha256_from(hashes | {reader.files[0]: "0" * 64}) != reader.sha256
