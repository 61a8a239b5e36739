"""`config.json` of the engine builder's checkpoints, from that of transformers' model.

Sources: TensorRT-LLM, `docs/source/legacy/architecture/checkpoint.md`, `models/modeling_utils.py`
(PretrainedConfig, QuantConfig), `models/llama/config.py`, `models/qwen/config.py` and
`quantization/quantize.py` (exclude_modules).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qdeploy import __version__
from qdeploy.exporters.base import Finding
from qdeploy.exporters.lint.engine import NOT_TAKEN
from qdeploy.exporters.trtllm_legacy.algorithms import algorithm
from qdeploy.exporters.trtllm_legacy.names import EMBEDDING, FINAL_NORM, HEAD
from qdeploy.exporters.trtllm_legacy.split import Split
from qdeploy.formats import modelopt
from qdeploy.schemes import Scheme

DTYPES = ("bfloat16", "float16")
ROPES = ("default", "linear", "dynamic", "llama3")
"""Rotary embeddings that transformers and TensorRT-LLM describe with the same fields."""

OTHER = "Use --backend pytorch"


def read_config(folder: Path) -> dict[str, Any]:
    """config.json with what it leaves to transformers' defaults."""
    from transformers import AutoConfig

    return dict(AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict())


def check_config(config: Mapping[str, Any], dtype: str) -> Iterator[Finding]:
    """What a model of a known architecture may have that the builder's has not."""
    if dtype not in DTYPES:
        problem = f"the model is in {dtype}; checkpoints are written in {' or '.join(DTYPES)}"
        yield NOT_TAKEN(problem, "Save it in bfloat16")
    rope = config["rope_parameters"]
    if rope["rope_type"] not in ROPES:
        problem = f"its rotary embeddings are {rope['rope_type']!r}, not one of {', '.join(ROPES)}"
        yield NOT_TAKEN(problem, OTHER)
    if rope.get("partial_rotary_factor", 1) != 1:
        problem = f"rotates {rope['partial_rotary_factor']} of each head, where only whole heads are known"
        yield NOT_TAKEN(problem, OTHER)
    if config["hidden_act"] != "silu":
        yield NOT_TAKEN(f"its activation is {config['hidden_act']!r}, not 'silu'", OTHER)


def window(config: Mapping[str, Any]) -> int | None:
    """How many tokens back its layers attend, if not to all: what an engine has to be told apart."""
    return config.get("sliding_window")


def checkpoint_config(
    config: Mapping[str, Any], dtype: str, split: Split, quantization: Mapping[str, Any]
) -> dict[str, Any]:
    """config.json.

    Args:
        config: see `read_config`; passed by `check_config`.
        dtype: of the model.
        split: over devices.
        quantization: see below.
    """
    rope = dict(config["rope_parameters"])
    base, kind = rope.pop("rope_theta"), rope["rope_type"]
    architecture = config["architectures"][0]
    qwen = architecture == "Qwen2ForCausalLM"
    heads = config["num_attention_heads"]
    return {
        "producer": {"name": "qdeploy", "version": __version__},
        "architecture": architecture,
        "dtype": dtype,
        "logits_dtype": "float32",
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"],
        "num_hidden_layers": config["num_hidden_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "head_size": config.get("head_dim") or config["hidden_size"] // heads,
        "hidden_act": config["hidden_act"],
        "norm_epsilon": config["rms_norm_eps"],
        "max_position_embeddings": config["max_position_embeddings"],
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": base,
        # Older releases look for "type".
        "rotary_scaling": None if kind == "default" else {"type": kind, **rope},
        "attn_bias": qwen or config.get("attention_bias", False),
        "mlp_bias": config.get("mlp_bias", False),
        **({"qwen_type": "qwen2"} if qwen else {}),
        "use_parallel_embedding": True,
        "embedding_sharding_dim": 0,
        "mapping": {
            "world_size": split.devices,
            "tp_size": split.tensor_parallel,
            "pp_size": split.pipeline_parallel,
        },
        "quantization": dict(quantization),
    }


def quantization(scheme: Scheme | None, kept: Sequence[str], cache_in_fp8: bool) -> dict[str, Any]:
    """`quantization` of config.json.

    Args:
        scheme: of all quantized layers; None for 16 bits.
        kept: layers in 16 bits, by the builder's names.
        cache_in_fp8: whether keys and values are.
    """
    found: dict[str, Any] = {
        "quant_algo": algorithm(scheme) if scheme else None,
        "kv_cache_quant_algo": "FP8" if cache_in_fp8 else None,
    }
    if scheme is None:
        return found
    if scheme.group_size is not None:
        found["group_size"] = scheme.group_size
    if algorithm(scheme) in modelopt.PAIRED:
        found |= {"has_zero_point": False, "pre_quant_scale": True}
    # A list takes the place of the builder's own, which names these three.
    return found | {"exclude_modules": [HEAD, EMBEDDING, FINAL_NORM, *kept]}
