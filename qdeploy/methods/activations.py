"""What engines make of a layer's inputs before they multiply."""

from __future__ import annotations

import torch
from torch import Tensor

from qdeploy.schemes import Scheme


def rounded_inputs(x: Tensor, scheme: Scheme) -> Tensor:
    """Inputs [..., K] as an engine hands them to the product: int8, scaled token by token, or as they are."""
    if scheme.activation_bits is None:
        return x
    steps = x.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny) / 127
    return (x / steps).round_().clamp_(-128, 127).mul_(steps)
