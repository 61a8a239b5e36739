"""The floor's arithmetic, counted by hand."""

from __future__ import annotations

from pathlib import Path

from benchmarks.floor import floor_flops, measure_rate, products
from qdeploy.modeling.activations import BATCH_TOKENS
from tests.conftest import SHARED


def test_the_floor_counts_every_linear_and_every_distinct_input(tiny_llama: Path) -> None:
    d, wide, layers = SHARED["hidden_size"], SHARED["intermediate_size"], SHARED["num_hidden_layers"]
    kv = d // 2  # two heads of four
    linears = d * d + 2 * kv * d + d * d + 3 * wide * d
    inputs = 3 * d * d + wide * wide  # of q/k/v, o, gate/up and down
    assert floor_flops(tiny_llama, 10) == 10 * layers * (2 * linears + 2 * inputs)


def test_the_rate_is_measured_on_the_walks_own_products_too(tiny_llama: Path) -> None:
    shapes = products(tiny_llama)
    d, wide = SHARED["hidden_size"], SHARED["intermediate_size"]
    tokens = BATCH_TOKENS
    assert {(tokens, d, wide), (tokens, wide, d), (d, tokens, d), (wide, tokens, wide)} <= set(shapes)
    assert measure_rate(shapes[-2:]).shape in shapes[-2:]
