"""What the weights w of a norm mean: it multiplies by w, or as Gemma's do by 1 + w."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qdeploy.modeling.parameters import replaced

SMALLEST = 2.0**-10
"""Below it, w is stored as 0 once it has been divided. What is above float16 holds where bfloat16 does."""


def neutral(norm: nn.Module, width: int, device: torch.device | None = None) -> float:
    """The value of a norm's weights with which it multiplies by 1: of some that is 0.

    Args:
        norm: may be on the meta device.
        width: of what it reads.
        device: to try it on; None for main memory.
    """
    names = [name for name, _ in norm.named_parameters(recurse=False)]
    with replaced({norm: {name: torch.zeros(width, device=device) for name in names}}):
        silent = not norm(torch.arange(1.0, width + 1, device=device).unsqueeze(0)).any()
    return float(silent)


def divided_plus_one(weight: Tensor, s: Tensor) -> Tensor:
    """w' [D] with 1 + w' near (1 + w)/s, in numbers that 16 bits hold, as float32."""
    found = ((weight.float() + 1) / s.to(weight.device) - 1).bfloat16().float()
    return torch.where(found.abs() < SMALLEST, 0.0, found)


def quotient(weight: Tensor, divided: Tensor) -> Tensor:
    """(1 + w)/(1 + w'), float32 [D]: what channels really are divided by; 1 where nothing was changed."""
    return torch.where(divided == weight, 1.0, (weight.float() + 1) / (divided.float() + 1))
