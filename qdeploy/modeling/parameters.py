"""Other values for a module's parameters, for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def replaced(parameters: Mapping[nn.Module, Mapping[str, Tensor]]) -> Iterator[None]:
    """Let modules have these values, by parameter name, for the time of a `with`."""
    before = [(m, name, getattr(m, name)) for m, others in parameters.items() for name in others]
    try:
        for module, others in parameters.items():
            for name, tensor in others.items():
                setattr(module, name, nn.Parameter(tensor, requires_grad=False))
        yield
    finally:
        for module, name, parameter in before:
            setattr(module, name, parameter)
