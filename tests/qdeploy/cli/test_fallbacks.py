"""What is told about layers with a fallback."""

from __future__ import annotations

from typing import Any

from qdeploy.cli.fallbacks import SHOWN, describe_fallbacks


def module(name: str, tokens: int | None = 4096, fallback: str | None = None) -> dict[str, Any]:
    return {"name": name, "tokens": tokens, "fallback": fallback}


def test_layers_are_told_one_by_one() -> None:
    modules = [module("model.layers.0.mlp.up_proj", fallback="why"), module("model.layers.1.mlp.up_proj")]
    assert list(describe_fallbacks(modules)) == ["why"]


def test_layers_that_differ_by_name_alone_share_a_line() -> None:
    names = [f"model.layers.{i}.{leaf}" for i in range(2) for leaf in ("q_proj", "up_proj")]
    modules = [module(name, fallback=f"awq: {name}: left out") for name in names]
    modules.insert(1, module("model.layers.0.o_proj", fallback="awq: model.layers.0.o_proj: another reason"))
    assert list(describe_fallbacks(modules)) == [
        "awq: model.layers.0.q_proj and 3 more layers: left out",
        "awq: model.layers.0.o_proj: another reason",
    ]


def test_the_experts_of_a_block_share_a_line() -> None:
    path = "model.layers.0.mlp.experts"
    few = [
        module(f"{path}.{i}.{leaf}", i, f"few reached {i}.{leaf}")
        for i in range(3)
        for leaf in ("up", "down")
    ]
    enough = [module(f"{path}.{i}.{leaf}") for i in range(3, 8) for leaf in ("up", "down")]
    assert list(describe_fallbacks([*reversed(few), *enough])) == [
        f"3 of 8 experts of {path}: 0 (0 tokens), 1 (1 tokens), 2 (2 tokens). The first: few reached 0.down"
    ]


def test_hundreds_of_experts_do_not_flood_the_screen() -> None:
    modules = [module(f"model.layers.0.mlp.experts.{i}.up", i, "few") for i in range(128)]
    (line,) = describe_fallbacks(modules)
    assert line.startswith("128 of 128 experts")
    assert line.count("tokens)") == SHOWN
    assert "and 120 more" in line
