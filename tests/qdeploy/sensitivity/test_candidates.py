from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qdeploy.errors import UnknownNameError, UsageError
from qdeploy.schemes import PRESETS, Scheme
from qdeploy.sensitivity.candidates import Candidate, choices
from qdeploy.sensitivity.measure import support_of
from qdeploy.sensitivity.units import Unit
from tests.qdeploy.sensitivity.problems import units_of

NARROW, WIDE = Unit("b", {"b.x": (64, 64)}), Unit("b", {"b.y": (64, 256)})


def test_group_sizes_are_each_units_own_or_as_asked() -> None:
    automatic, fixed = Candidate.parse("W4A16"), Candidate.parse("w4a16:32")
    assert [automatic.for_unit(unit) for unit in (NARROW, WIDE)] == [Scheme("W4A16", 4, k) for k in (64, 128)]
    assert [fixed.for_unit(unit) for unit in (NARROW, WIDE)] == 2 * [Scheme("W4A16", 4, 32)]
    assert (str(automatic), str(fixed)) == ("W4A16", "W4A16:32")
    assert Candidate.parse("W8A16:channel").for_unit(WIDE) == Scheme("W8A16", 8, None)


def test_groups_of_minifloats_are_part_of_the_format() -> None:
    asked = [Candidate.parse(name) for name in ("NVFP4A16", "FP8_BLOCK")]
    found = choices([NARROW, WIDE], asked, support_of("vllm", "h100"))
    both = [PRESETS["NVFP4A16"], PRESETS["FP8_BLOCK"]]
    assert found.of == {NARROW.name: both[:1], WIDE.name: both}
    assert "b.x (64 columns)" in found.refused["FP8_BLOCK"][0]
    with pytest.raises(UsageError, match="NVFP4A16 has no group size to choose"):
        Candidate.parse("NVFP4A16:32")


@pytest.mark.parametrize("text", ["W4A16:x", "W4A16:0", "W4A16:", "W8A8:64"])
def test_what_is_no_group_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="group size"):
        Candidate.parse(text)


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="W4A16"):
        Candidate.parse("W4A17")


def test_a_group_size_that_does_not_divide_is_left_out() -> None:
    found = choices([NARROW, WIDE], [Candidate.parse("W4A16:128")], support_of("vllm", "h100"))
    assert found.of == {NARROW.name: [], WIDE.name: [Scheme("W4A16", 4, 128)]}
    assert found.refused == {"W4A16:128": ("groups of 128 do not divide b.x (64 columns)", 1)}


def test_a_scheme_named_twice_is_tried_once() -> None:
    asked = [Candidate.parse("W4A16"), Candidate.parse("W4A16:64")]
    assert choices([NARROW], asked, support_of("vllm", "h100")).of == {NARROW.name: [Scheme("W4A16", 4, 64)]}


def test_only_what_the_target_has_kernels_for_is_tried(tiny_llama: Path) -> None:
    units = units_of(tiny_llama)
    asked = [Candidate.parse(name) for name in ("W4A16:32", "W8A16:32", "W3A16:32", "W8A8")]
    on_cpu = choices(units, asked, support_of("vllm", "cpu-avx512"))
    assert {s.name for unit in units for s in on_cpu.of[unit.name]} == {"W4A16", "W8A8"}
    assert {scheme: count for scheme, (_, count) in on_cpu.refused.items()} == {
        "W8A16:32": len(units),
        "W3A16:32": len(units),
    }
    on_gpu = choices(units, asked, support_of("vllm", "h100"))
    assert all(len(schemes) == 4 for schemes in on_gpu.of.values())
    assert not on_gpu.refused


def test_experts_are_asked_for_as_experts(tiny_model: Callable[[str], Path]) -> None:
    units = units_of(tiny_model("mixtral"))
    found = choices(units, [Candidate.parse("W3A16:32")], support_of("vllm", "a100"))
    assert [unit for unit in units if not found.of[unit.name]] == [unit for unit in units if unit.experts]


def test_a_target_that_serves_nothing_is_told(tiny_llama: Path) -> None:
    with pytest.raises(UsageError, match=r"Not one of the schemes can be used \(W8A16: no kernel"):
        choices(units_of(tiny_llama), [Candidate.parse("W8A16")], support_of("vllm", "cpu-avx512"))
