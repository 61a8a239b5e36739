"""What the engine builder calls the parts of a model, and the models that have these parts.

Sources: TensorRT-LLM, `docs/source/legacy/architecture/checkpoint.md`, `models/llama/` and `models/qwen/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
"""Those whose layers are UNITS and NORMS, and whose biases transformers and the builder have in common."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One linear layer of the builder's model.

    Attributes:
        name: after `transformer.layers.L.`.
        members: modules of transformers' model, after `model.layers.L.`, whose rows stand below each other.
        split: what devices share out.
    """

    name: str
    members: tuple[str, ...]
    split: Literal["rows", "columns"]


UNITS = (
    Unit("attention.qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "rows"),
    Unit("attention.dense", ("self_attn.o_proj",), "columns"),
    # The builder activates `fc`, which is transformers' gate, and multiplies by `gate`.
    Unit("mlp.fc", ("mlp.gate_proj",), "rows"),
    Unit("mlp.gate", ("mlp.up_proj",), "rows"),
    Unit("mlp.proj", ("mlp.down_proj",), "columns"),
)
NORMS = {"input_layernorm": "input_layernorm", "post_layernorm": "post_attention_layernorm"}
"""The builder's name → transformers'."""

EMBEDDING, FINAL_NORM, HEAD = "transformer.vocab_embedding", "transformer.ln_f", "lm_head"
HF_EMBEDDING, HF_FINAL_NORM = "model.embed_tokens", "model.norm"


def block(layer: int) -> str:
    """What the names of a layer begin with."""
    return f"transformer.layers.{layer}"


def hf_block(layer: int) -> str:
    """The same in transformers' model."""
    return f"model.layers.{layer}"
