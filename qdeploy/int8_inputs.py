"""What engines do to the inputs of W8A8 layers: int8, with a scale for each token."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qdeploy.schemes import Scheme


def round_per_token(x: Tensor) -> Tensor:
    """`x` [..., K] rounded to 255 levels per row: s · round(x / s) with s = max|x| / 127.

    This is the dynamic symmetric int8 quantization of vLLM's W8A8 kernels.
    """
    scale = x.abs().amax(-1, keepdim=True).float() / 127
    rounded = (x.float() / scale.clamp_min(torch.finfo(torch.float32).tiny)).round() * scale
    return rounded.to(x.dtype)


def round_inputs(model: nn.Module, schemes: Mapping[str, Scheme]) -> list[RemovableHandle]:
    """Have the layers of a model round what they read, where their scheme says so.

    Args:
        schemes: module name → its scheme.

    Returns:
        What ends it.
    """
    return [
        model.get_submodule(name).register_forward_pre_hook(_round_input)
        for name, scheme in schemes.items()
        if scheme.activation_bits is not None
    ]


def _round_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (round_per_token(inputs[0]), *inputs[1:])
