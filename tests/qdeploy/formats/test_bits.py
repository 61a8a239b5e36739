"""Bit streams against vectors made by the original packers."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import Tensor

from qdeploy.formats import bits

WEIGHT_PACKED = {
    2: ("deb7fa31994db53f", "6C6C6C6C"),
    3: ("fc74e51ec501334a", "98ABC398 C398ABC3 ABC398AB"),
    4: ("2db0ab5a4b869f25", "52FC9630 DA741EB8 52FC9630"),
    5: ("cecf098ebbe279da", "9EC49860 40FB78AC DA706A8E"),
    6: ("62dc3c8c64abd244", "CC2460C0 E6D85523 B6A9E485"),
    7: ("c38dfd27c1111766", "C1218180 982A4878 3A44278D"),
    8: ("41f0496115d3af31", "09060300 15120F0C 211E1B18"),
}
ZERO_POINT = {2: "c05a619274c7e1cd", 4: "b09a4f24167e9aa2", 8: "ec51cc3605e98014"}


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


def reference_codes(b: int) -> Tensor:
    n, k = torch.arange(64)[:, None], torch.arange(64)[None, :]
    return ((7 * n + 3 * k + (n * k) % 5) % 2**b).to(torch.uint8)


@pytest.mark.parametrize("b", WEIGHT_PACKED)
def test_weights_match_the_known_answer(b: int) -> None:
    sha, first_words = WEIGHT_PACKED[b]
    packed = bits.pack(reference_codes(b), b)
    assert packed.dtype == torch.int32 and packed.shape == (64, 2 * b)
    shown = " ".join(f"{word & 0xFFFFFFFF:08X}" for word in packed[0].tolist())
    assert shown.startswith(first_words)
    assert digest(packed) == sha


@pytest.mark.parametrize("b", ZERO_POINT)
def test_zero_points_packed_along_rows_match_the_known_answer(b: int) -> None:
    n, g = torch.arange(64)[:, None], torch.arange(2)[None, :]
    packed = bits.pack(((3 * n + 5 * g) % 2**b).to(torch.uint8), b, dim=0)
    assert packed.shape == (2 * b, 2)
    assert digest(packed) == ZERO_POINT[b]


@pytest.mark.parametrize("b", range(1, 9))
@pytest.mark.parametrize("length", [1, 31, 32, 33, 100])
@pytest.mark.parametrize("dim", [0, 1])
def test_unpack_inverts_pack(b: int, length: int, dim: int) -> None:
    shape = (length, 3) if dim == 0 else (3, length)
    codes = torch.randint(0, 2**b, shape, dtype=torch.uint8)
    packed = bits.pack(codes, b, dim)
    assert packed.shape[dim] == bits.words(length, b)
    assert torch.equal(bits.unpack(packed, b, length, dim), codes)


@pytest.mark.parametrize("b", range(1, 9))
def test_blocks_of_rows_do_not_show(b: int) -> None:
    codes = torch.randint(0, 2**b, (2 * bits.BLOCK // 64 + 3, 64), dtype=torch.uint8)
    packed = bits.pack(codes, b)
    assert torch.equal(packed[-5:], bits.pack(codes[-5:], b))
    assert torch.equal(bits.unpack(packed, b, 64), codes)
