"""Sizes, budgets, and what the machine has."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdeploy import memory
from qdeploy.errors import UsageError
from qdeploy.memory import Budget, budget, format_size, free_disk, free_memory, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2 * 1024**3),
        ("512MiB", 512 * 1024**2),
        ("2GB", 2 * 10**9),
        ("1.5 gib", 3 * 1024**3 // 2),
        ("10kB", 10_000),
        ("1073741824", 1024**3),
        ("7B", 7),
    ],
)
def test_sizes_are_read_with_decimal_and_binary_units(text: str, size: int) -> None:
    assert parse_size(text, "--activation-memory") == size


@pytest.mark.parametrize("text", ["2G", "lots", "", "-1GiB", "0", "2GiB of it", "1e9"])
def test_a_bad_size_is_one_message_with_the_option_and_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=f"--activation-memory '{text}' is not a size.*2GiB"):
        parse_size(text, "--activation-memory")


def test_sizes_are_shown_in_the_unit_that_fits() -> None:
    shown = [format_size(size) for size in (12, 1536, 5 * 2**20, 3 * 2**30, 2**41, 2**51)]
    assert shown == ["12 bytes", "1.50 KiB", "5.00 MiB", "3.00 GiB", "2.00 TiB", "2048.00 TiB"]


def test_without_options_a_share_of_what_is_free_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 1000)
    monkeypatch.setattr(memory, "free_device", lambda: 600)
    assert budget() == Budget(500, 300)
    assert budget("10B", "20B") == Budget(10, 20)


def test_gpu_memory_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_device", lambda: None)
    with pytest.raises(UsageError, match="--device-memory 2GiB: torch sees no CUDA device"):
        budget(None, "2GiB")


def test_hidden_states_leave_room_for_the_inside_of_a_block() -> None:
    assert Budget(100).states == 25
    assert Budget(100).inside(states=20) == 80
    on_gpu = Budget(100, device=70)
    assert on_gpu.states == 100
    assert on_gpu.inside(states=100) == 70


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    unlimited = free_memory()
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    assert free_memory() == 3000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() > unlimited / 2


def test_the_disk_of_a_folder_yet_to_be_made_is_that_of_its_parent(tmp_path: Path) -> None:
    assert free_disk(tmp_path / "a" / "b") == pytest.approx(free_disk(tmp_path), rel=0.01)
