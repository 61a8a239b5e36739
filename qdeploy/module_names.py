"""What the name of a layer says about it."""

from __future__ import annotations

import re

_EXPERT = re.compile(r"(.+\.\d+\..+)\.(\d+)\.[^.]+")
"""The first number is the block's."""


def expert_of(layer: str) -> tuple[str, int] | None:
    """(experts of the block, number) of an expert's layer; None for any other.

    ("model.layers.3.mlp.experts", 17) of "model.layers.3.mlp.experts.17.up_proj".
    """
    match = _EXPERT.fullmatch(layer)
    return (match[1], int(match[2])) if match else None
