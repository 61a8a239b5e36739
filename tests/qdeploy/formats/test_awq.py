"""AWQ's format against words that AutoAWQ's packer made, and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qdeploy.errors import CheckpointError
from qdeploy.formats import awq
from qdeploy.quantized import QuantizedLinear
from qdeploy.schemes import Scheme
from tests.qdeploy.formats.test_bits import digest
from tests.qdeploy.formats.test_gptq import layer, reference_zeros, words


def test_codes_match_the_known_answer() -> None:
    packed = awq.pack(layer(4))["qweight"]
    assert (packed.dtype, packed.shape) == (torch.int32, (64, 8))
    assert words(packed[0]).startswith("1357ACE0 9BDF2468 1357ACE0")
    assert words(packed[1]).startswith("66BBE333 C116999E 77CCFF44")
    assert digest(packed) == "05878d7eac8b54e1"


def test_zero_points_match_the_known_answer() -> None:
    packed = awq.pack(layer(4, reference_zeros(4)))["qzeros"]
    assert words(packed[0]).startswith("5F932C60 D71BA4E8 5F932C60")
    assert digest(packed) == "b99bcc898d6351a6"


def test_the_symmetric_grid_is_one_word() -> None:
    packed = awq.pack(layer(4))["qzeros"]
    assert set((packed.long() & 0xFFFFFFFF).flatten().tolist()) == {0x88888888}


@given(
    sides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    symmetric=st.booleans(),
    channel=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_unpack_inverts_pack(sides: tuple[int, int], symmetric: bool, channel: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    n, k = (32 * side for side in sides)
    scheme = Scheme("", 4, None if channel else 32, symmetric)
    codes = torch.randint(0, 16, (n, k), generator=generator).to(torch.uint8)
    zeros = torch.randint(0, 16, (n, scheme.groups(k)), generator=generator).to(torch.uint8)
    q = QuantizedLinear(codes, torch.rand(zeros.shape).half() + 0.1, None if symmetric else zeros, scheme)
    read = awq.unpack(awq.pack(q), scheme)
    assert torch.equal(read.codes, codes)
    assert torch.equal(read.scales, q.scales) and read.scales.dtype == torch.float16
    assert (read.zeros is None) == symmetric
    assert symmetric or torch.equal(read.zeros, zeros)  # type: ignore[arg-type]


def test_zero_points_of_another_grid_are_told() -> None:
    q = layer(4, reference_zeros(4))
    with pytest.raises(CheckpointError, match=r"120 of 128 zero points are not 8; its grid is asymmetric"):
        awq.unpack(awq.pack(q), Scheme("", 4, 32))


def test_what_it_cannot_hold() -> None:
    with pytest.raises(ValueError, match="packs 4 bits, not 8"):
        awq.pack(layer(8))
    scheme = Scheme("", 4, None)
    q = QuantizedLinear(torch.zeros(40, 32, dtype=torch.uint8), torch.ones(40, 1), None, scheme)
    with pytest.raises(ValueError, match=r"not \[40, 32\]"):
        awq.pack(q)
    assert "whole groups, and 128 does not divide 160" in (awq.refusal(Scheme("", 4, 128), 32, 160) or "")
