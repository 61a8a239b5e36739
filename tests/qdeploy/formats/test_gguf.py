"""Blocks of GGUF files as integers on a grid, against gguf's own decoding of them."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as BlockType
from torch import Tensor

from qdeploy.formats.gguf import BYTES, OF_ZEROS, SCHEMES, inexact, unpack

N, GROUPS = 48, 5


def random_blocks(kind: str) -> Tensor:
    """Any bytes, with scales of either sign, small, denormal and zero; minima are multiples of them."""
    generator = torch.Generator().manual_seed(len(kind) + BYTES[kind])
    blocks = torch.randint(0, 256, (N, GROUPS, BYTES[kind]), dtype=torch.uint8, generator=generator)
    d = (torch.randn(N, GROUPS, generator=generator) * 0.01).bfloat16().half()
    d[0], d[1] = 0.0, 2.0**-20
    blocks[..., :2] = d[..., None].view(torch.uint8)
    if kind == "Q4_1":
        powers = torch.exp2(torch.randint(-9, -3, (N, GROUPS), generator=generator)).half()
        zeros = torch.randint(0, 16, (N, GROUPS), generator=generator)
        powers[0] = 0.0
        blocks[..., :2], blocks[..., 2:4] = (
            half.half()[..., None].view(torch.uint8) for half in (powers, -zeros * powers)
        )
    return blocks.flatten(1)


def decoded(kind: str, blocks: Tensor) -> Tensor:
    return torch.from_numpy(gguf.dequantize(blocks.numpy(), BlockType[kind]))


@pytest.mark.parametrize("kind", SCHEMES)
def test_the_weights_are_those_that_gguf_decodes(kind: str) -> None:
    blocks = random_blocks(kind)
    assert inexact(kind, blocks) == 0
    q = unpack(kind, blocks)
    assert (q.scheme, q.scales.dtype, q.shape) == (SCHEMES[kind], torch.float16, (N, 32 * GROUPS))
    assert torch.equal(q.dequantize(), decoded(kind, blocks))


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_so_are_those_of_gguf_s_encoder(kind: str) -> None:
    weight = np.random.default_rng(0).standard_normal((N, 64)).astype(np.float32)
    blocks = torch.from_numpy(np.asarray(gguf.quantize(weight, BlockType[kind])))
    q = unpack(kind, blocks)
    assert torch.equal(q.dequantize(), decoded(kind, blocks))
    assert bool((q.scales < 0).any()) is (kind == "Q4_0")


@pytest.mark.parametrize("kind", SCHEMES)
def test_blocks_of_zeros_have_a_scale_that_is_none(kind: str) -> None:
    q = unpack(kind, random_blocks(kind))
    assert (q.scales[0] == OF_ZEROS).all()
    assert not q.dequantize()[0].any()


def test_minima_that_are_no_multiples_of_their_scale_are_counted() -> None:
    weight = np.random.default_rng(0).standard_normal((N, 64)).astype(np.float32)
    encoded = torch.from_numpy(np.asarray(gguf.quantize(weight, BlockType.Q4_1)))
    assert inexact("Q4_1", encoded) > N
    blocks = random_blocks("Q4_1").unflatten(1, (GROUPS, -1))
    for row, (d, m) in enumerate([(0.5, 0.5), (0.5, -8.0), (0.5, -0.25), (0.0, 1.0)]):
        blocks[row, 2, :4] = torch.tensor([d, m], dtype=torch.float16).view(torch.uint8)
    assert inexact("Q4_1", blocks.flatten(1)) == 4


@pytest.mark.parametrize("kind", SCHEMES)
def test_scales_that_are_no_numbers_are_counted(kind: str) -> None:
    blocks = random_blocks(kind)
    blocks[3, :2] = torch.tensor([float("nan")], dtype=torch.float16).view(torch.uint8)
    assert inexact(kind, blocks) == 1
