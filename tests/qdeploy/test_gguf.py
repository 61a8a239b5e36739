"""GGUF import against the block formulas of llama.cpp, written out again here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as BlockType
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from qdeploy.cli.main import build
from qdeploy.errors import CheckpointError, OutputError, UsageError
from qdeploy.files import read_json
from qdeploy.gguf import import_gguf
from qdeploy.modeling.checkpoint import CheckpointReader
from tests.qdeploy.tiny_gguf import CHAT_TEMPLATE, HEADS, KV_HEADS, LINEARS, Array, write_tiny_gguf

NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def half(blocks: Array, start: int) -> Array:
    return np.ascontiguousarray(blocks[:, start : start + 2]).view("<f2").astype(np.float32)


def nibbles(packed: Array) -> Array:
    """[B, 16] bytes → [B, 32]: low nibbles first."""
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)


def decode_q4_0(blocks: Array) -> Array:
    return half(blocks, 0) * (nibbles(blocks[:, 2:]) - 8)


def decode_q4_1(blocks: Array) -> Array:
    return half(blocks, 0) * nibbles(blocks[:, 4:]) + half(blocks, 2)


def decode_q5_0(blocks: Array) -> Array:
    word = np.ascontiguousarray(blocks[:, 2:6]).view("<u4")
    fifth = (word >> np.arange(32, dtype=np.uint32) & 1).astype(np.float32)
    return half(blocks, 0) * (nibbles(blocks[:, 6:]) + 16 * fifth - 16)


def decode_q8_0(blocks: Array) -> Array:
    return half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def decode_q4_k(blocks: Array) -> Array:
    d, dmin, s = half(blocks, 0)[:, 0], half(blocks, 2)[:, 0], blocks[:, 4:16]
    values = np.empty((len(blocks), 256), np.float32)
    for j in range(8):
        if j < 4:
            scale, minimum = s[:, j] & 63, s[:, j + 4] & 63
        else:
            scale = (s[:, j + 4] & 15) | ((s[:, j - 4] >> 6) << 4)
            minimum = (s[:, j + 4] >> 4) | ((s[:, j] >> 6) << 4)
        chunk = blocks[:, 16 + 32 * (j // 2) : 48 + 32 * (j // 2)]
        codes = (chunk >> 4 if j % 2 else chunk & 15).astype(np.float32)
        values[:, 32 * j : 32 * j + 32] = (d * scale)[:, None] * codes - (dmin * minimum)[:, None]
    return values


def decode_q6_k(blocks: Array) -> Array:
    scales, d = blocks[:, 192:208].view(np.int8).astype(np.float32), half(blocks, 208)
    codes = np.empty((len(blocks), 256), np.float32)
    for part in range(8):
        side, quarter = divmod(part, 4)
        low = blocks[:, 64 * side + 32 * (quarter % 2) :][:, :32]
        high = blocks[:, 128 + 32 * side :][:, :32]
        four = low >> 4 if quarter >= 2 else low & 15
        codes[:, 32 * part : 32 * part + 32] = (four | ((high >> 2 * quarter & 3) << 4)).astype(
            np.float32
        ) - 32
    return d * np.repeat(scales, 16, axis=1) * codes


def decode_bf16(raw: Array) -> Array:
    return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


BLOCKS: dict[BlockType, tuple[int, Callable[[Array], Array]]] = {
    BlockType.Q4_0: (18, decode_q4_0),
    BlockType.Q4_1: (20, decode_q4_1),
    BlockType.Q5_0: (22, decode_q5_0),
    BlockType.Q8_0: (34, decode_q8_0),
    BlockType.Q4_K: (144, decode_q4_k),
    BlockType.Q6_K: (210, decode_q6_k),
    BlockType.F32: (4, lambda raw: raw.view(np.float32)),
    BlockType.F16: (2, lambda raw: raw.view(np.float16).astype(np.float32)),
    BlockType.BF16: (2, decode_bf16),
}


def decoded(name: str, raw: Array, kind: BlockType) -> torch.Tensor:
    """The float32 weight, llama.cpp's interleaving of rotary rows undone."""
    size, decode = BLOCKS[kind]
    n, k = LINEARS[name]
    weight = decode(np.ascontiguousarray(raw).view(np.uint8).reshape(-1, size)).reshape(n, k)
    heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name)
    if heads:
        weight = weight.reshape(heads, n // heads // 2, 2, k).swapaxes(1, 2).reshape(n, k)
    return torch.from_numpy(weight.copy())


@pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.name)
def test_weights_are_the_values_of_the_blocks(kind: BlockType, tmp_path: Path) -> None:
    stored = write_tiny_gguf(tmp_path / "tiny.gguf", kind)
    summary = import_gguf(tmp_path / "tiny.gguf", tmp_path / "out")
    assert summary.architecture == "llama"
    assert summary.types[kind.name] >= len(LINEARS)
    reader = CheckpointReader(tmp_path / "out")
    for name, module in NAMES.items():
        weight = reader.get(f"model.layers.0.{module}.weight")
        assert weight.dtype == torch.bfloat16
        expected = decoded(name, stored[f"blk.0.{name}.weight"], kind).bfloat16()
        assert torch.equal(weight, expected), name
    embeddings = torch.from_numpy(stored["token_embd.weight"]).bfloat16()
    assert torch.equal(reader.get("model.embed_tokens.weight"), embeddings)


def test_the_folder_is_a_whole_model(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", BlockType.Q8_0)
    output = tmp_path / "out"
    import_gguf(tmp_path / "tiny.gguf", output)
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert (
        tokenizer.decode(tokenizer("abc, déjà vu", add_special_tokens=False)["input_ids"]) == "abc, déjà vu"
    )
    assert tokenizer.chat_template == CHAT_TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(output)
    assert model(torch.arange(8)[None]).logits.isfinite().all()
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    private = [key for file in output.glob("*config.json") for key in read_json(file) if key.startswith("_")]
    assert private == []
    modes = {path.stat().st_mode for path in output.iterdir()}
    assert len(modes) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tiny.gguf"]


def test_the_command_prints_a_summary(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", BlockType.Q4_0)
    arguments = ["import", str(tmp_path / "tiny.gguf"), "-o", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(build(), arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "output": str(tmp_path / "out"),
        "architecture": "llama",
        "tensors": {"F32": 4, "Q4_0": 7},
    }


def test_types_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", BlockType.Q5_1)
    with pytest.raises(
        CheckpointError, match=r"holds 7 tensors of type Q5_1\. Types that can be imported: F32"
    ):
        import_gguf(tmp_path / "tiny.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("keep", [0.999, 0.9, 0.5, 0.01, 0.001])
def test_a_truncated_file_is_one_error(keep: float, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_tiny_gguf(file, BlockType.Q4_0)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])
    with pytest.raises(CheckpointError, match="truncated or damaged GGUF file"):
        import_gguf(file, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a model"])
def test_another_kind_of_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a GGUF file: it begins with"):
        import_gguf(tmp_path / "model.gguf", tmp_path / "out")
    with pytest.raises(CheckpointError, match="is not a file"):
        import_gguf(tmp_path / "absent.gguf", tmp_path / "out")


def test_an_output_in_use_is_left_alone(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", BlockType.F16)
    with pytest.raises(OutputError, match="in use"):
        import_gguf(tmp_path / "tiny.gguf", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_a_missing_extra_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UsageError, match=r"pip install 'qdeploy\[gguf\]'"):
        import_gguf(tmp_path / "tiny.gguf", tmp_path / "out")
