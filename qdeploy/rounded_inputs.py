"""What engines do to the inputs of layers whose scheme rounds activations."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qdeploy.levels import nearest_float
from qdeploy.schemes import E4M3, Activations, Scheme

LARGEST_INT8 = 127.0


def rounded(x: Tensor, how: Activations, scale: Tensor | None = None) -> Tensor:
    """`x` [..., K] rounded as `how` says: s · nearest(x / s), with s by token, group of columns, or for all.

    Int8 per token is the dynamic symmetric quantization of vLLM's W8A8 kernels: s = max|x| / 127.

    Args:
        scale: float32 [], the static scale; None takes that of `x`.
    """
    wide = x.float()
    groups = wide.reshape(*x.shape[:-1], -1, how.per) if isinstance(how.per, int) else wide
    s = _steps(groups, how, scale).clamp_min(torch.finfo(torch.float32).tiny)
    return (_nearest(groups / s, how) * s).reshape(x.shape).to(x.dtype)


def static_scale(largest: Tensor, how: Activations) -> Tensor:
    """The scale, float32 [], for inputs up to `largest`; of groups with E4M3 scales their divisor.

    It is rounded to bfloat16, in which it is stored, unless it is a divisor.
    """
    size = largest.float().clamp_min(torch.finfo(torch.bfloat16).tiny)
    if how.steps == "e4m3":
        return E4M3.largest * _range(how) / size
    return (size / _range(how)).bfloat16().float()


def _range(how: Activations) -> float:
    return how.element.largest if how.element else LARGEST_INT8


def _nearest(levels: Tensor, how: Activations) -> Tensor:
    if how.element is not None:
        return nearest_float(levels, how.element)
    return levels.round_().clamp_(-LARGEST_INT8 - 1, LARGEST_INT8)


def _steps(groups: Tensor, how: Activations, scale: Tensor | None) -> Tensor:
    if scale is None and not how.dynamic:
        scale = static_scale(groups.abs().amax(), how)
    if how.per == "tensor":
        assert scale is not None
        return scale
    sizes = groups.abs().amax(-1, keepdim=True)
    if how.steps == "e8m0":
        # OCP Microscaling Formats 1.0, section 6.3: the largest one's power of two over the element's.
        return torch.exp2(sizes.log2().floor() - torch.tensor(_range(how)).log2().floor())
    if how.steps == "e4m3":
        assert scale is not None
        return nearest_float(sizes / _range(how) * scale, E4M3) / scale
    return sizes / _range(how)


def round_inputs(
    model: nn.Module, schemes: Mapping[str, Scheme], scales: Mapping[str, Tensor] | None = None
) -> list[RemovableHandle]:
    """Have the layers of a model round what they read, where their scheme says so.

    Args:
        schemes: module name → its scheme.
        scales: module name → its static scale, where it has one.

    Returns:
        What ends it.
    """
    return [
        model.get_submodule(name).register_forward_pre_hook(
            partial(_round_input, scheme.activations, (scales or {}).get(name))
        )
        for name, scheme in schemes.items()
        if scheme.activations is not None
    ]


def _round_input(
    how: Activations, scale: Tensor | None, _: nn.Module, inputs: tuple[Any, ...]
) -> tuple[Any, ...]:
    return (rounded(inputs[0], how, scale), *inputs[1:])
