"""What a quantized layer means, in one short string that no packing can change.

`quantize` records the fingerprint of every layer before it is packed; `verify` computes it again from what
the packed file decodes to. Codes, zero points and scales are exact in every format: one changed code shows.
"""

from __future__ import annotations

import hashlib

import torch

from qdeploy.quantized import QuantizedLinear

DIGITS = 32
"""Hexadecimal digits kept: 128 bits, beyond chance collision."""


def fingerprint(q: QuantizedLinear) -> str:
    """SHA-256 over the shapes and values of `q`, cut to DIGITS hexadecimal digits.

    The symmetric grid counts as its constant zero point and scales count as float32, so that the same numbers
    stored in another format or floating-point type have the same fingerprint. So do divisors and scales of
    inputs, where there are any.
    """
    groups = tuple(q.scales.shape)
    zeros = q.zeros if q.zeros is not None else torch.full(groups, q.scheme.zero, dtype=torch.uint8)
    digest = hashlib.sha256(repr((q.scheme.bits, tuple(q.codes.shape), groups)).encode())
    extra = (scale for scale in (q.divisor, q.input_scale) if scale is not None)
    for tensor in (q.codes, zeros, q.scales.float(), *(scale.float() for scale in extra)):
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()[:DIGITS]
