"""Folders of large models that take no room: real headers and sizes, weights that are a hole in the file."""

import json
import struct
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SMOLLM2: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
"""HuggingFaceTB/SmolLM2-135M-Instruct: 134,515,008 weights."""

LLAMA3_8B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
"""meta-llama/Meta-Llama-3-8B: 8,030,261,248 weights."""

LLAMA31 = {
    "max_position_embeddings": 131072,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
"""What Llama-3.1-8B has otherwise."""


def text_config(config: dict[str, Any]) -> Any:
    """As transformers completes it."""
    return AutoConfig.for_model(**config).get_text_config()


def write_sparse(folder: Path, config: dict[str, Any], dtype: str = "BF16", **more: Any) -> Path:
    """A model folder whose file of weights is as long as it says, and empty.

    Args:
        dtype: of all weights, as safetensors calls it.
        more: for config.json alone.
    """
    full = AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(full)
    folder.mkdir()
    stored = {"architectures": [type(model).__name__], "dtype": "bfloat16", **config, **more}
    (folder / "config.json").write_text(json.dumps(stored))
    (folder / "tokenizer.json").write_text("{}")
    header, end = {}, 0
    for name, tensor in model.state_dict().items():
        if config["tie_word_embeddings"] and name == "lm_head.weight":
            continue
        start, end = end, end + tensor.numel() * (4 if dtype == "F32" else 2)
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return folder
