import dataclasses

import pytest
import torch

from qdeploy.fingerprint import DIGITS, fingerprint
from qdeploy.formats.compressed_tensors import pack, unpack
from qdeploy.quantized import QuantizedLinear, portable_scales
from qdeploy.schemes import INT8_PER_TOKEN, Scheme

SCHEMES = [
    Scheme("W4A16", 4, 32),
    Scheme("W4A16_ASYM", 4, 32, symmetric=False),
    Scheme("W8A16", 8, None),
    Scheme("W8A8", 8, None, activations=INT8_PER_TOKEN),
]


def layer(scheme: Scheme, n: int = 32, k: int = 64) -> QuantizedLinear:
    torch.manual_seed(0)
    groups = scheme.groups(k)
    codes = torch.randint(0, scheme.qmax + 1, (n, k), dtype=torch.uint8)
    zeros = None if scheme.symmetric else torch.randint(0, scheme.qmax + 1, (n, groups), dtype=torch.uint8)
    return QuantizedLinear(codes, portable_scales(torch.rand(n, groups) + 0.01), zeros, scheme)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_packing_does_not_change_the_fingerprint(scheme: Scheme) -> None:
    q = layer(scheme)
    assert fingerprint(unpack(pack(q), scheme)) == fingerprint(q)
    assert len(fingerprint(q)) == DIGITS


def test_two_swapped_nibbles_in_one_word_change_it() -> None:
    q = layer(SCHEMES[0])
    packed = pack(q)
    word = int(packed["weight_packed"][3, 1])
    low, high = word & 0xF, word >> 4 & 0xF
    assert low != high
    packed["weight_packed"][3, 1] = word - low - (high << 4) + high + (low << 4)
    assert fingerprint(unpack(packed, q.scheme)) != fingerprint(q)


def test_it_depends_on_every_part() -> None:
    q = layer(SCHEMES[1])
    assert q.zeros is not None
    changed = [
        dataclasses.replace(q, stored=q.codes ^ 1),
        dataclasses.replace(q, zeros=q.zeros ^ 1),
        dataclasses.replace(q, scales=q.scales * 2),
        dataclasses.replace(q, stored=q.codes.reshape(64, 32), scales=q.scales.reshape(64, 1)),
        dataclasses.replace(q, divisor=torch.tensor(2.0)),
        dataclasses.replace(q, input_scale=torch.tensor(3.0)),
    ]
    assert len({fingerprint(value) for value in [q, *changed]}) == 7


def test_the_same_numbers_stored_otherwise_have_the_same_fingerprint() -> None:
    q = layer(SCHEMES[0])
    spelled_out = dataclasses.replace(
        q, zeros=torch.full_like(q.scales, 8, dtype=torch.uint8), scales=q.scales.half()
    )
    assert fingerprint(spelled_out) == fingerprint(q)
