"""Tiny random models of every supported family, saved as real safetensors folders."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

torch.set_num_threads(1)
# What tests run is not entered in the catalogue of whoever runs them.
if "qdeploy-tests-" not in os.environ.get("QDEPLOY_CATALOGUE", ""):  # as of the process that started this one
    catalogue = tempfile.mkdtemp(prefix="qdeploy-tests-")
    atexit.register(shutil.rmtree, catalogue, ignore_errors=True)
    os.environ["QDEPLOY_CATALOGUE"] = str(Path(catalogue) / "runs.sqlite3")
# The same examples in every run, and none too slow on a machine that has other work.
settings.register_profile("steady", derandomize=True, deadline=None, database=None)
settings.load_profile("steady")
# Shells have what they start in the background ignore Ctrl-C, and its children too: some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

VOCABULARY = 320
SHARED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 257,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"head_dim": 16, "sliding_window": None},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16},
    "gemma3_text": {
        "head_dim": 16,
        "num_hidden_layers": 3,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "tie_word_embeddings": True,
    },
    "phi3": {"sliding_window": None},
}
"""model_type → what differs from SHARED."""
EXPERT_FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "head_dim": 16,
        "num_hidden_layers": 3,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "mlp_only_layers": [1],
    },
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
    },
}
"""The same for mixtures of experts; the second has a dense block between two others."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, so that any text has a known length; ids 256 and 257 begin and end a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def save_tiny(folder: Path, family: str, **changes: Any) -> Path:
    """Save a random bfloat16 model of a `model_type` with its tokenizer and return `folder`."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(SHARED | (FAMILIES | EXPERT_FAMILIES).get(family, {}) | changes))
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms of one and biases of zero would hide mistakes
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.to(torch.bfloat16).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """family → folder of a tiny random model; made once per session, so never write into it."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = save_tiny(tmp_path_factory.mktemp(family), family)
        return made[family]

    return make


@pytest.fixture(scope="session")
def tiny_llama(tiny_model: Callable[[str], Path]) -> Path:
    """Folder of a tiny random Llama with untied embeddings and grouped-query attention."""
    return tiny_model("llama")


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose layers blocks of 128 × 128 divide."""
    return save_tiny(tmp_path_factory.mktemp("wide"), "llama", hidden_size=128, head_dim=32)


@pytest.fixture(params=[*FAMILIES, *EXPERT_FAMILIES])
def tiny_family(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path]) -> Path:
    """Folder of a tiny random model, once for every supported family."""
    return tiny_model(request.param)
