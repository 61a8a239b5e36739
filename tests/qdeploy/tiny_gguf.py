"""A tiny Llama as a GGUF file in any block type, with the values that its blocks stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as BlockType
from tokenizers import pre_tokenizers

Array = npt.NDArray[Any]

HIDDEN, HEADS, KV_HEADS, VOCABULARY = 256, 4, 2, 320
LINEARS = {
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (HIDDEN // 2, HIDDEN),
    "attn_v": (HIDDEN // 2, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_gate": (HIDDEN, HIDDEN),
    "ffn_up": (HIDDEN, HIDDEN),
    "ffn_down": (HIDDEN, HIDDEN),
}
CHAT_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
RANDOM = np.random.default_rng(0)


def halves(count: int) -> Array:
    """Little-endian float16 scales as bytes [count, 2]."""
    return (RANDOM.random(count) * 0.01 + 0.001).astype("<f2").view(np.uint8).reshape(count, 2)


def random_blocks(kind: BlockType, shape: tuple[int, int]) -> Array:
    """Bytes [N, row bytes] of a random matrix in blocks of `kind`."""
    n, k = shape
    values = (RANDOM.standard_normal(shape) * 0.1).astype(np.float32)
    if kind not in (BlockType.Q4_K, BlockType.Q6_K):
        return np.asarray(gguf.quants.quantize(values, kind))
    # gguf has no encoder for these, and any bytes are valid but for the float16 scales.
    size, count = (144, n * k // 256) if kind is BlockType.Q4_K else (210, n * k // 256)
    blocks = RANDOM.integers(0, 256, (count, size), dtype=np.uint8)
    if kind is BlockType.Q4_K:
        blocks[:, 0:2], blocks[:, 2:4] = halves(count), halves(count)
    else:
        blocks[:, 208:210] = halves(count)
    return blocks.reshape(n, -1)


def write_tiny_gguf(path: Path, kind: BlockType) -> dict[str, Array]:
    """Write the model and return the raw tensors: GGUF name → array as stored."""
    writer = gguf.GGUFWriter(path, "llama")
    _add_config(writer)
    _add_tokenizer(writer)
    tensors = {
        "token_embd.weight": RANDOM.standard_normal((VOCABULARY, HIDDEN)).astype(np.float32),
        "output_norm.weight": RANDOM.random(HIDDEN).astype(np.float32),
        "blk.0.attn_norm.weight": RANDOM.random(HIDDEN).astype(np.float32),
        "blk.0.ffn_norm.weight": RANDOM.random(HIDDEN).astype(np.float32),
    }
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    for name, shape in LINEARS.items():
        tensors[f"blk.0.{name}.weight"] = random_blocks(kind, shape)
        writer.add_tensor(f"blk.0.{name}.weight", tensors[f"blk.0.{name}.weight"], raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def _add_config(writer: Any) -> None:
    writer.add_name("Tiny")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)


def _add_tokenizer(writer: Any) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    extra = [f"<extra_{i}>" for i in range(VOCABULARY - len(letters) - 3)]
    tokens = [*letters, "ab", "<s>", "</s>", *extra]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<") and len(token) > 1 else 1 for token in tokens])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(tokens.index("<s>"))
    writer.add_eos_token_id(tokens.index("</s>"))
    writer.add_chat_template(CHAT_TEMPLATE)
