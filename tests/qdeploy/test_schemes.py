from __future__ import annotations

from dataclasses import replace

import pytest

from qdeploy.errors import UnknownNameError, UsageError
from qdeploy.schemes import (
    PRESETS,
    auto_group_size,
    check_group_size,
    fitting_group_sizes,
    preset,
)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_found_whatever_the_case_and_dashes(name: str) -> None:
    assert preset(name.lower().replace("_", "-")) is PRESETS[name]


def test_an_unknown_preset_names_the_near_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown scheme 'W4A61'\. Did you mean .*'W4A16'"):
        preset("W4A61")


def test_a_misfitting_group_size_lists_layers_and_sizes_that_fit() -> None:
    widths = {"q_proj": 576, "down_proj": 1536}
    with pytest.raises(UsageError) as error:
        check_group_size(preset("W4A16"), widths)
    message = str(error.value)
    assert "Group size 128 does not divide 1 of 2 layers: q_proj (576 columns)" in message
    assert "64, 32, channel" in message
    assert "--group-size 64" in message


def test_many_misfits_are_counted_not_listed() -> None:
    with pytest.raises(UsageError, match="and 6 more"):
        check_group_size(preset("W4A16"), {f"layer{i}": 96 for i in range(10)})


def test_fitting_sizes_are_accepted() -> None:
    check_group_size(replace(preset("W4A16"), group_size=64), {"q_proj": 576})
    check_group_size(preset("W8A8"), {"q_proj": 7})
    assert fitting_group_sizes([576, 1536]) == [64, 32]


@pytest.mark.parametrize(("widths", "size"), [([256], 128), ([576, 1536], 64), ([96], 32), ([100], None)])
def test_auto_takes_the_largest_size_that_divides_all(widths: list[int], size: int | None) -> None:
    assert auto_group_size(preset("W4A16"), widths).group_size == size
    assert auto_group_size(preset("W8A8"), widths).group_size is None


def test_schemes_describe_themselves() -> None:
    assert preset("W4A16_ASYM").describe() == "W4A16_ASYM asymmetric, group 128"
    assert preset("W8A8").describe() == "W8A8 symmetric, per channel"
    assert (preset("W4A16").qmax, preset("W4A16").zero, preset("W4A16").groups(512)) == (15, 8, 4)
