"""A block's layers in candidate schemes, rounded as the recipe's method would.

It matters which method: GPTQ makes up for errors along the directions in which a layer's inputs vary most,
and what is then left has little to do with what rounding to nearest leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qdeploy.methods.base import LinearProblem, needs_hessian, solve
from qdeploy.methods.hessian import Hessian
from qdeploy.modeling.blocks import shared_inputs
from qdeploy.modeling.parameters import replaced
from qdeploy.modeling.products import product_dtype
from qdeploy.rounded_inputs import round_inputs
from qdeploy.schemes import Scheme
from qdeploy.sensitivity.subject import Recorded
from qdeploy.solving import shared_largest


class Rounding:
    """Rounds the layers of a materialized block.

    Args:
        recorded: hidden states of the 16-bit model; Hessians are of the samples that no harm is measured on.
        block: the block's number.
    """

    def __init__(self, recorded: Recorded, block: int) -> None:
        self._recorded, self._block = recorded, block
        self._rounder = recorded.subject.rounder
        self._linears: dict[str, nn.Linear] = recorded.calls[block].block.linears()
        self._hessians = self._gathered() if needs_hessian(self._rounder) else {}

    def weight(self, name: str, scheme: Scheme) -> Tensor:
        """Ŵ float32 [N, K] of a layer, by its full name."""
        weight = self._linears[name].weight.detach()
        largest = shared_largest(name, scheme, self._linears)
        problem = LinearProblem(name, weight, self._hessians.get(name), scheme, largest=largest)
        return solve(self._rounder, problem).quantized.dequantize()

    @contextmanager
    def rounded(self, schemes: Mapping[str, Scheme]) -> Iterator[None]:
        """Let layers compute as in these schemes for the time of a `with`."""
        weights: dict[nn.Module, dict[str, Tensor]] = {
            self._linears[name]: {"weight": self.weight(name, scheme)} for name, scheme in schemes.items()
        }
        handles = round_inputs(self._recorded.subject.model, schemes)
        try:
            with replaced(weights):
                yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def _gathered(self) -> dict[str, Hessian]:
        """Layer → second moment of what it reads; layers that read the same share one."""
        call, device = self._recorded.calls[self._block], self._recorded.subject.device
        batches = list(self._recorded.fitted())
        first = self._recorded.before(self._block, batches[0]).to(device)
        hessians, handles = dict[str, Hessian](), []
        for names in shared_inputs(call.block, partial(call, first)):
            layer = self._linears[names[0]]
            hessian = Hessian(layer.in_features, device, product_dtype(device))
            handles.append(layer.register_forward_pre_hook(_adding(hessian)))
            hessians |= dict.fromkeys(names, hessian)
        try:
            for batch in batches:
                call(self._recorded.before(self._block, batch).to(device))
        finally:
            for handle in handles:
                handle.remove()
        return hessians


def _adding(hessian: Hessian) -> Any:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        hessian.add(args[0])

    return hook
