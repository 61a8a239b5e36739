"""Channel scales: powers of two, within what number formats hold."""

from __future__ import annotations

import torch

from qdeploy.distributed import ALONE
from qdeploy.methods.scaling import FARTHEST, SAMPLED, SMALLEST, Channels, powers_of_two


def test_the_nearest_power_of_two_is_taken() -> None:
    wanted = torch.tensor([1.0, 3.1, 0.3, 5.5, 1e9, 1e-9, 0.0, torch.inf, torch.nan])
    found = powers_of_two(wanted, torch.arange(9), torch.ones(9))
    far = 2.0**FARTHEST
    assert found.tolist() == [1, 4, 0.25, 4, far, 1 / far, 1, 1, 1]


def test_channels_of_one_row_share_a_scale_and_rows_that_are_no_channel_have_none() -> None:
    rows = torch.tensor([1, 1, 3, 3])
    found = powers_of_two(torch.tensor([2.0, 8.0, 4.0, 4.0]), rows, torch.ones(4))
    assert found.tolist() == [1, 4, 1, 4]


def test_no_row_becomes_smaller_than_formats_hold() -> None:
    sizes = torch.tensor([SMALLEST, 4 * SMALLEST, SMALLEST / 2, 0.0])
    found = powers_of_two(torch.full((4,), 64.0), torch.arange(4), sizes)
    assert found.tolist() == [1, 4, 1, 1]


def test_channels_hold_the_largest_inputs_and_some_evenly_apart() -> None:
    x = torch.randn(4 * SAMPLED, 8)
    channels = Channels(8, len(x))
    for batch in x.split(100):
        channels.add(batch.view(1, *batch.shape))
    channels.merge(ALONE)
    assert torch.equal(channels.largest, x.abs().amax(0))
    torch.testing.assert_close(channels.mean, x.abs().mean(0))
    assert torch.equal(channels.sample, x[::4])


def test_layers_that_no_token_reaches_have_an_empty_sample() -> None:
    channels = Channels(8, 100)
    channels.add(torch.empty(0, 8))
    assert channels.sample.shape == (0, 8)
    assert torch.equal(channels.largest, torch.zeros(8))
    assert torch.equal(channels.mean, torch.zeros(8))
