"""Inputs as engines round them."""

from __future__ import annotations

import torch

from qdeploy.methods.activations import rounded_inputs
from qdeploy.schemes import Scheme

W8A8 = Scheme("W8A8", 8, None, activation_bits=8)


def test_each_token_has_127_steps_of_its_own_each_way() -> None:
    x = torch.tensor([[127.0, -1.4, 0.6], [0.0127, 0.00011, 0]])
    expected = torch.tensor([[127.0, -1.0, 1.0], [0.0127, 0.0001, 0]])
    torch.testing.assert_close(rounded_inputs(x, W8A8), expected)


def test_a_token_of_zeros_stays_so_and_inputs_are_not_changed_in_place() -> None:
    x = torch.zeros(2, 3)
    x[1] = torch.tensor([1.0, 0.3, 0.2])
    before = x.clone()
    assert torch.equal(rounded_inputs(x, W8A8)[0], torch.zeros(3))
    assert torch.equal(x, before)


def test_16_bit_activations_are_left_alone() -> None:
    x = torch.randn(2, 3)
    assert rounded_inputs(x, Scheme("W4A16", 4, 32)) is x
