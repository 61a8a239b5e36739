"""GPTQ's format against words that GPTQModel's packer made, and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qdeploy.errors import CheckpointError
from qdeploy.fingerprint import fingerprint
from qdeploy.formats import gptq
from qdeploy.quantized import QuantizedLinear
from qdeploy.schemes import Scheme
from tests.qdeploy.formats.test_bits import digest, reference_codes

QWEIGHT = {
    2: ("b3fbb4f5f48795e8", "6C6C6C6C 6C6C6C6C 6C6C6C6C", "155AABFF 5AABFF00 ABFF0015"),
    3: ("a8d5ec8d00666fed", "98ABC398 C398ABC3 ABC398AB", "72CB77DF B82094D3 A56593EF"),
    4: ("fb92c511317356a0", "52FC9630 DA741EB8 52FC9630", "EA673FB7 451D9562 FB7340C8"),
    8: ("bc62b772900cfb7a", "09060300 15120F0C 211E1B18", "130F0B07 1E1A1617 29252622"),
}
QZEROS_2 = {2: "ee58b9e8d83e1a2b", 3: "7f4d4841e77645cb", 4: "25db7e75dbf4dfff", 8: "1570d69ff18a662c"}
QZEROS_1 = {2: "b3992678f1db0978", 3: "f67eee8591802ef5", 4: "82a0e61c95ff2afe", 8: "7fae1677ec49217f"}
SYMMETRIC = {
    1: {2: 0x55555555, 4: 0x77777777, 8: 0x7F7F7F7F},
    2: {2: 0xAAAAAAAA, 4: 0x88888888, 8: 0x80808080},
}


def layer(b: int, zeros: Tensor | None = None) -> QuantizedLinear:
    """The known answers' codes in two groups of 32."""
    scheme = Scheme(f"W{b}A16", b, 32, symmetric=zeros is None)
    return QuantizedLinear(reference_codes(b), torch.rand(64, 2).bfloat16() + 0.1, zeros, scheme)


def reference_zeros(b: int) -> Tensor:
    n, g = torch.arange(64)[:, None], torch.arange(2)[None, :]
    return ((3 * n + 5 * g) % 2**b).to(torch.uint8)


def words(column: Tensor) -> str:
    return " ".join(f"{word & 0xFFFFFFFF:08X}" for word in column.tolist())


@pytest.mark.parametrize("b", gptq.BITS)
def test_codes_match_the_known_answer(b: int) -> None:
    sha, first, second = QWEIGHT[b]
    packed = gptq.pack(layer(b), 1)["qweight"]
    assert (packed.dtype, packed.shape) == (torch.int32, (2 * b, 64))
    assert words(packed[:, 0]).startswith(first)
    assert words(packed[:, 1]).startswith(second)
    assert digest(packed) == sha


@pytest.mark.parametrize("b", gptq.BITS)
def test_zero_points_match_the_known_answer(b: int) -> None:
    packed = gptq.pack(layer(b, reference_zeros(b)), 2)["qzeros"]
    assert packed.shape == (2, 2 * b)
    assert digest(packed) == QZEROS_2[b]


@pytest.mark.parametrize("b", gptq.BITS)
def test_version_1_stores_one_less_field_by_field(b: int) -> None:
    q, shifted = layer(b, reference_zeros(b)), layer(b, (reference_zeros(b) - 1) & (2**b - 1))
    packed = gptq.pack(shifted, 2)["qzeros"]  # what version 1 holds of q, whose zeros it may not be given
    assert digest(packed) == QZEROS_1[b]
    with pytest.raises(ValueError, match="gptq_v2 has"):
        gptq.pack(q, 1)
    read = gptq.unpack(gptq.pack(q, 2) | {"qzeros": packed}, q.scheme, 1)
    assert read.zeros is not None and torch.equal(read.zeros, reference_zeros(b))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("b", [2, 4, 8])
def test_the_symmetric_grid_is_one_word(b: int, version: gptq.Version) -> None:
    packed = gptq.pack(layer(b), version)["qzeros"]
    assert set((packed.long() & 0xFFFFFFFF).flatten().tolist()) == {SYMMETRIC[version][b]}


@given(
    b=st.sampled_from(gptq.BITS),
    sides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    symmetric=st.booleans(),
    channel=st.booleans(),
    version=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**32 - 1),
)
def test_unpack_inverts_pack(
    b: int, sides: tuple[int, int], symmetric: bool, channel: bool, version: gptq.Version, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    n, k = (32 * side for side in sides)
    scheme = Scheme("", b, None if channel else 32, symmetric)
    codes = torch.randint(0, 2**b, (n, k), generator=generator).to(torch.uint8)
    shape = (n, scheme.groups(k))
    zeros = torch.randint(int(version == 1), 2**b, shape, generator=generator).to(torch.uint8)
    q = QuantizedLinear(codes, torch.rand(shape).half() + 0.1, None if symmetric else zeros, scheme)
    read = gptq.unpack(gptq.pack(q, version), scheme, version)
    assert torch.equal(read.codes, q.codes)
    assert torch.equal(read.scales, q.scales) and read.scales.dtype == torch.float16
    assert (read.zeros is None) == symmetric
    assert symmetric or torch.equal(read.zeros, zeros)  # type: ignore[arg-type]


@pytest.mark.parametrize(("written", "read"), [(1, 2), (2, 1)])
def test_a_mixed_up_version_is_seen_where_the_grid_is_symmetric(
    written: gptq.Version, read: gptq.Version
) -> None:
    q = layer(4)
    with pytest.raises(
        CheckpointError, match=r"128 of 128 zero points are not 8, .* is checkpoint_format right"
    ):
        gptq.unpack(gptq.pack(q, written), q.scheme, read)


@pytest.mark.parametrize("symmetric", [True, False])
def test_columns_out_of_order_decode_as_their_groups_say(symmetric: bool) -> None:
    q = layer(4, None if symmetric else reference_zeros(4))
    tensors = gptq.pack(q, 2)
    g_idx = torch.randperm(64, generator=torch.Generator().manual_seed(0)).int() % 2
    read = gptq.unpack(tensors | {"g_idx": g_idx}, q.scheme, 2)
    assert read.column_groups is not None and torch.equal(read.column_groups, g_idx)
    zeros = torch.full((64, 2), 8) if symmetric else reference_zeros(4)
    expected = torch.stack(
        [
            (q.codes[:, k].float() - zeros[:, g]) * q.scales[:, g].float()
            for k, g in enumerate(g_idx.tolist())
        ],
        1,
    )
    assert torch.equal(read.dequantize(), expected)
    assert gptq.out_of_order(g_idx, q.scheme) == int((g_idx != torch.arange(64) // 32).sum())
    assert fingerprint(read) != fingerprint(gptq.unpack(tensors, q.scheme, 2))


def test_groups_that_are_only_numbered_otherwise_are_put_in_order() -> None:
    q = layer(4, reference_zeros(4))
    tensors = gptq.pack(q, 2)
    other = {
        "g_idx": 1 - tensors["g_idx"],
        "scales": tensors["scales"].flip(0),
        "qzeros": tensors["qzeros"].flip(0),
    }
    read = gptq.unpack(tensors | other, q.scheme, 2)
    assert read.column_groups is None
    assert torch.equal(read.dequantize(), q.dequantize())
    assert all(torch.equal(t, tensors[name]) for name, t in gptq.pack(read, 2).items())


def test_groups_need_no_index_and_one_that_is_not_there_is_told() -> None:
    q = layer(4)
    tensors = gptq.pack(q, 1)
    bad = tensors | {"g_idx": tensors["g_idx"] + 1}
    with pytest.raises(CheckpointError, match="g_idx is from 1 to 2, of 2 groups"):
        gptq.unpack(bad, q.scheme, 1)
    del tensors["g_idx"]
    assert torch.equal(gptq.unpack(tensors, q.scheme, 1).dequantize(), q.dequantize())


def test_a_last_group_may_be_narrower() -> None:
    codes, scheme = torch.randint(0, 16, (32, 160), dtype=torch.uint8), Scheme("W4A16", 4, 128)
    q = QuantizedLinear(codes, torch.tensor([[0.5, 2.0]]).expand(32, 2), None, scheme)
    tensors = gptq.pack(q, 1)
    assert tensors["g_idx"].tolist() == [0] * 128 + [1] * 32
    read = gptq.unpack(tensors, scheme, 1).dequantize()
    assert torch.equal(read[:, :128], (codes[:, :128].float() - 8) * 0.5)
    assert torch.equal(read[:, 128:], (codes[:, 128:].float() - 8) * 2)


def test_wrong_tensors_are_told() -> None:
    q = layer(4)
    tensors = gptq.pack(q, 1)
    with pytest.raises(CheckpointError, match=r"scales has shape \[64, 2\], expected \[2, 64\]"):
        gptq.unpack(tensors | {"scales": q.scales}, q.scheme, 1)
    with pytest.raises(CheckpointError, match="tensor qzeros is missing"):
        gptq.unpack({name: t for name, t in tensors.items() if name != "qzeros"}, q.scheme, 1)


def test_shapes_that_no_reader_takes() -> None:
    scheme = Scheme("", 4, None)
    q = QuantizedLinear(torch.zeros(33, 32, dtype=torch.uint8), torch.ones(33, 1), None, scheme)
    with pytest.raises(ValueError, match=r"not \[33, 32\]"):
        gptq.pack(q, 1)
