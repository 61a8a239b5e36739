"""What is learnt of the input that layers share, and of what their outputs lack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from qdeploy.distributed import Group
from qdeploy.methods.correction import Lack
from qdeploy.methods.hessian import Hessian
from qdeploy.methods.scaling import Channels
from qdeploy.modeling.products import product_dtype
from qdeploy.modeling.residual import Targets


class Gathered:
    """What is learnt of the input that a group of layers shares, and of what their outputs lack.

    `tokens` is how many there will be, where channels are looked at one by one; 0 where they are not.
    """

    def __init__(
        self, group: Sequence[str], linears: Mapping[str, nn.Linear], targets: Targets, tokens: int
    ) -> None:
        self._linears, self._targets = linears, targets
        columns, device = linears[group[0]].in_features, linears[group[0]].weight.device
        products = product_dtype(device)
        self.hessian = Hessian(columns, device, products)
        self.channels = Channels(columns, tokens, device) if tokens else None
        self.lacks = {
            name: Lack(linears[name].out_features, columns, device, products)
            for name in group
            if name in targets
        }

    def add(self, x: Tensor) -> None:
        """Take in the input [..., K] in the micro-batch that runs."""
        self.hessian.add(x)
        if self.channels:
            self.channels.add(x)
        for name, lack in self.lacks.items():
            target, samples = self._targets.target(name, x.device)
            if len(target):
                read = x[samples]
                lack.add(target - self._linears[name].forward(read), read)

    def merge(self, group: Group) -> None:
        """Take in what the other processes have seen."""
        self.hessian.merge(group)
        if self.channels:
            self.channels.merge(group)
        for lack in self.lacks.values():
            lack.merge(group)

    def divide(self, s: Tensor) -> None:
        """Make them those of x / s, for s [K]."""
        self.hessian.divide(s)
        for lack in self.lacks.values():
            lack.divide(s)
