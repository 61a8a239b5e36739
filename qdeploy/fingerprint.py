"""What a quantized layer means, in one short string that no packing can change.

`quantize` records the fingerprint of every layer before it is packed; `verify` computes it again from what
the packed file decodes to. Codes, zero points and scales are exact in every format: one changed code shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from qdeploy.methods.base import Quantized
from qdeploy.reference_linear import ReferenceLinear

DIGITS = 32
"""Hexadecimal digits kept: 128 bits, beyond chance collision."""


def fingerprint(q: Quantized) -> str:
    """SHA-256 over the shapes and values of `q`, cut to DIGITS hexadecimal digits.

    The symmetric grid counts as its constant zero point and scales count as float32, so that the same numbers
    stored in another format or floating-point type have the same fingerprint. Divisors, scales of inputs and
    groups of columns out of order count where there are any.
    """
    if isinstance(q, ReferenceLinear):
        return _hashed((q.shape,), [q.weight.float()])
    groups = tuple(q.scales.shape)
    zeros = q.zeros if q.zeros is not None else torch.full(groups, q.scheme.zero, dtype=torch.uint8)
    extra = [part.float() for part in (q.divisor, q.input_scale, q.column_groups) if part is not None]
    return _hashed((q.scheme.bits, q.shape, groups), [q.codes, zeros, q.scales.float(), *extra])


def _hashed(what: tuple[object, ...], tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256(repr(what).encode())
    for tensor in tensors:
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()[:DIGITS]
