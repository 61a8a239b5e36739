"""How many bytes of cache a sequence takes on each device, and how long a sequence can be.

After vLLM 0.32.0: `v1/kv_cache_interface.py` (FullAttentionSpec, SlidingWindowSpec, MLAAttentionSpec),
`config/model.py` (`_get_and_verify_max_len`) and `transformers_utils/model_arch_config_convertor.py`
(`is_deepseek_mla`). Models whose cache is anything else have no size here, and are told to have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

KNOWN_LAYERS = {"full_attention", "sliding_attention"}
LATENT_MODELS = {"deepseek_v2", "deepseek_v3", "kimi_k2", "glm4_moe_lite"}
"""Models that vLLM runs with one latent vector for a token in place of keys and values."""

BLOCK = 16
"""Tokens of a block of vLLM's cache, by default."""

SCALED_ALREADY = {"su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"}
"""Kinds of rotary embeddings whose `max_position_embeddings` has their factor in it."""


class UnknownCacheError(ValueError):
    """The model keeps something in its cache whose size is not known here; the message says what."""


@dataclass(frozen=True, slots=True)
class CacheSize:
    """Bytes on one device.

    Attributes:
        whole: of a token, in all layers that keep every token.
        windowed: of a token, in all layers that keep the last `window` tokens.
        window: see above; 0 where no layer has one.
    """

    whole: int
    windowed: int = 0
    window: int = 0

    @property
    def per_token(self) -> int:
        """Of a token, in all layers."""
        return self.whole + self.windowed

    def of_sequence(self, tokens: int, in_flight: int) -> int:
        """Of a sequence, in whole blocks.

        Args:
            tokens: of the sequence.
            in_flight: tokens that the engine works on at a time, which layers with a window keep beside it.
        """
        whole = _blocks(tokens) * BLOCK * self.whole
        if not self.windowed:
            return whole
        kept = min(tokens, self.window - 1 + in_flight)
        # The window may begin inside a block.
        return whole + (_blocks(kept) + 1) * BLOCK * self.windowed

    def longest(self, most: int, room: int, in_flight: int) -> int:
        """Tokens of the longest sequence that takes `room` bytes: `most`, or whole blocks below it."""
        if self.of_sequence(most, in_flight) <= room:
            return most
        fits, too_long = 0, _blocks(most)
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            if self.of_sequence(middle * BLOCK, in_flight) <= room:
                fits = middle
            else:
                too_long = middle
        return fits * BLOCK


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK)


def cache_size(config: Any, tensor_parallel: int, element: int) -> CacheSize:
    """Of a model, from transformers' config of its text part.

    Args:
        config: as transformers completes it.
        tensor_parallel: devices that the model is split over; key/value heads fewer than these are repeated,
            latent vectors always.
        element: bytes of a number in the cache: 2, or 1 in FP8.

    Raises:
        UnknownCacheError: what the model keeps is not keys and values of every layer, nor latent vectors.
    """
    _refuse_unknown(config)
    layers = int(config.num_hidden_layers)
    if getattr(config, "kv_lora_rank", None) is not None:
        return CacheSize(layers * element * (int(config.kv_lora_rank) + int(config.qk_rope_head_dim)))
    heads = int(config.num_attention_heads)
    kept = int(getattr(config, "num_key_value_heads", None) or heads)
    key = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    value = int(getattr(config, "v_head_dim", None) or key)
    layer = max(1, kept // tensor_parallel) * (key + value) * element
    sliding = _sliding_layers(config, layers)
    window = int(config.sliding_window) if sliding else 0
    return CacheSize((layers - sliding) * layer, sliding * layer, window)


def _refuse_unknown(config: Any) -> None:
    if getattr(config, "is_heterogeneous", False):
        raise UnknownCacheError("its layers have caches of different shapes")
    types = set(getattr(config, "layer_types", None) or ())
    if types - KNOWN_LAYERS:
        raise UnknownCacheError(f"it has layers of {', '.join(sorted(types - KNOWN_LAYERS))}")
    if getattr(config, "index_topk", None) is not None:
        raise UnknownCacheError("its attention keeps an index beside the cache")
    if getattr(config, "num_kv_shared_layers", None):
        raise UnknownCacheError("some of its layers share a cache")
    if getattr(config, "kv_lora_rank", None) is not None and config.model_type not in LATENT_MODELS:
        raise UnknownCacheError("it has latent attention of a kind of its own")
    if getattr(config, "num_attention_heads", None) is None:
        raise UnknownCacheError("it has no attention heads")


def _sliding_layers(config: Any, layers: int) -> int:
    """How many layers keep a window: those that say so, or all where there is a window and none says."""
    types = getattr(config, "layer_types", None)
    if not getattr(config, "sliding_window", None):
        return 0
    return layers if types is None else list(types).count("sliding_attention")


def model_length(config: Any) -> int | None:
    """Tokens of the longest sequence that the model was made for; None if its config does not say."""
    length = getattr(config, "max_position_embeddings", None)
    if length is None:
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope] if "rope_type" in rope else [kind for kind in rope.values() if isinstance(kind, dict)]
    if any(kind.get("rope_type") == "longrope" for kind in kinds):
        return int(getattr(config, "original_max_position_embeddings", None) or length)
    factors = [kind.get("factor") or 1.0 for kind in kinds if kind.get("rope_type") not in SCALED_ALREADY]
    scaled = "gemma3" not in config.model_type and factors
    return int(length * factors[-1]) if scaled else int(length)
