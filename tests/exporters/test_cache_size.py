from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdeploy.exporters.cache_size import BLOCK, CacheSize, UnknownCacheError, cache_size, model_length
from tests.exporters.sparse import LLAMA3_8B, LLAMA31, SMOLLM2, text_config

DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
}


@pytest.mark.parametrize(
    ("config", "devices", "element", "per_token"),
    [
        (SMOLLM2, 1, 2, 30 * 3 * 64 * 2 * 2),
        (LLAMA3_8B, 1, 2, 131_072),
        (LLAMA3_8B, 1, 1, 65_536),
        (LLAMA3_8B, 2, 2, 65_536),
        (LLAMA3_8B, 8, 2, 16_384),
        # Eight heads over sixteen devices: each has one.
        (LLAMA3_8B, 16, 2, 16_384),
        # One latent vector of 512 + 64 on every device.
        (DEEPSEEK_V3, 1, 2, 61 * 576 * 2),
        (DEEPSEEK_V3, 8, 2, 61 * 576 * 2),
    ],
)
def test_bytes_of_a_token(config: dict[str, Any], devices: int, element: int, per_token: int) -> None:
    assert cache_size(text_config(config), devices, element) == CacheSize(per_token)


def test_layers_with_a_window_are_counted_apart() -> None:
    gemma = {"model_type": "gemma3_text", "num_hidden_layers": 12, "num_key_value_heads": 4, "head_dim": 256}
    found = cache_size(text_config(gemma | {"sliding_window": 512}), 1, 2)
    layer = 4 * 256 * 2 * 2
    assert found == CacheSize(2 * layer, 10 * layer, 512)
    assert found.per_token == 12 * layer


def test_a_window_without_kinds_of_layers_is_every_layer_s() -> None:
    mistral = LLAMA3_8B | {"model_type": "mistral", "sliding_window": 4096}
    assert cache_size(text_config(mistral), 1, 2) == CacheSize(0, 131_072, 4096)
    off = LLAMA3_8B | {"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}
    assert cache_size(text_config(off), 1, 2) == CacheSize(131_072)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "qwen3_next"}, "it has layers of linear_attention"),
        ({"model_type": "llama4_text"}, "it has layers of chunked_attention"),
        ({"model_type": "gemma3n_text"}, "some of its layers share a cache"),
        ({"model_type": "gemma4_text"}, "its layers have caches of different shapes"),
        (
            {"model_type": "deepseek_v32", "layer_types": None},
            "its attention keeps an index beside the cache",
        ),
        ({"model_type": "minicpm3"}, "it has latent attention of a kind of its own"),
        ({"model_type": "rwkv"}, "it has no attention heads"),
    ],
)
def test_caches_that_are_not_known(config: dict[str, Any], reason: str) -> None:
    whole = text_config(config)
    if config.get("layer_types", ...) is None:
        whole.layer_types = None
    with pytest.raises(UnknownCacheError, match=reason):
        cache_size(whole, 1, 2)


def test_a_window_bounds_what_a_sequence_takes() -> None:
    size = CacheSize(whole=10, windowed=100, window=64)
    assert size.of_sequence(16, 32) == 16 * 10 + 2 * 16 * 100
    # 64 - 1 + 32 tokens are kept, in six blocks and the one that they begin in.
    assert size.of_sequence(4096, 32) == 4096 * 10 + 7 * 16 * 100


@given(
    st.builds(CacheSize, st.integers(0, 500), st.integers(0, 500), st.integers(1, 300)).filter(
        lambda size: size.per_token > 0
    ),
    st.integers(1, 5000),
    st.integers(0, 2_000_000),
    st.integers(0, 200),
)
def test_the_longest_sequence_fits_and_a_block_more_does_not(
    size: CacheSize, most: int, room: int, in_flight: int
) -> None:
    longest = size.longest(most, room, in_flight)
    assert 0 <= longest <= most
    assert longest == 0 or size.of_sequence(longest, in_flight) <= room
    if longest < most:
        assert longest % BLOCK == 0
        assert size.of_sequence(min(most, longest + BLOCK), in_flight) > room


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({}, 8192),
        (LLAMA31, 131_072),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}, 32_768),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, 8192),
    ],
)
def test_how_long_a_sequence_the_model_was_made_for(changes: dict[str, Any], length: int) -> None:
    assert model_length(text_config(LLAMA3_8B | changes)) == length


def test_lengths_of_models_with_rules_of_their_own() -> None:
    factors = {"short_factor": [1.0] * 48, "long_factor": [1.0] * 48}
    phi3 = {
        "model_type": "phi3",
        "max_position_embeddings": 131_072,
        "original_max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, **factors},
    }
    assert model_length(text_config(phi3)) == 4096
    gemma = {
        "model_type": "gemma3_text",
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    }
    assert model_length(text_config(gemma)) == 131_072
    assert model_length(text_config({"model_type": "bloom"})) is None
