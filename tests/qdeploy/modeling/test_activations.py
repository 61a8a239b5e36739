"""Hidden states in memory and in a file, and how many micro-batches fit into a budget."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from qdeploy.errors import OutputError
from qdeploy.memory import Budget
from qdeploy.modeling import activations
from qdeploy.modeling.activations import Activations, Footprint, footprint, states_bytes

SHAPE = (5, 4, 3)


@pytest.mark.parametrize(("given", "resident"), [(10**6, states_bytes(SHAPE)), (1, 0)])
def test_states_in_memory_and_on_disk_are_the_same(
    given: int, resident: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "BATCH_TOKENS", 8)
    states = Activations(SHAPE, tmp_path, Budget(given))
    assert states.resident_bytes == resident
    expected = torch.randn(SHAPE)
    for samples in states.batches():
        states[samples] = expected[samples]
    assert torch.equal(states[:], expected)
    assert torch.equal(states[1:2], expected[1:2])
    assert states[2:2].shape == (0, 4, 3)
    states[2:4] = torch.zeros(4, 3)
    expected[2:4] = 0
    assert torch.equal(states[:], expected)
    assert [samples.stop - samples.start for samples in states.batches()] == [2, 2, 1]
    assert not list(tmp_path.iterdir())


def test_others_that_share_a_budget_are_kept_in_the_same_place(tmp_path: Path) -> None:
    alone = Activations(SHAPE, tmp_path, Budget(8 * states_bytes(SHAPE)))
    shared = Activations(SHAPE, tmp_path, Budget(8 * states_bytes(SHAPE)), together=3 * states_bytes(SHAPE))
    assert alone.resident_bytes == alone.like(5).resident_bytes == states_bytes(SHAPE)
    assert shared.resident_bytes == shared.like(2).resident_bytes == 0


def test_where_they_find_no_room_on_the_disk_that_is_told_before_anything_runs(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OutputError, match=r"Cannot write .*: the file is larger than"):
            Activations((4, 32, 64), tmp_path, Budget(0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not any(tmp_path.iterdir())


def test_no_more_batches_halt_than_fit_and_no_fewer() -> None:
    one = Footprint(running=100, halted=30)
    assert one.halting(batches=4, room=190, solving=0) == 4  # three wait, the fourth runs
    assert one.halting(batches=4, room=189, solving=0) == 2
    assert one.halting(batches=4, room=130, solving=0) == 1
    assert one.halting(batches=4, room=99, solving=0) == 0
    for room in range(100, 250):
        found = one.halting(6, room, 0)
        assert one.together(6, found) <= room
        assert found == 6 or one.together(6, found + 1) > room or found == 5


def test_those_that_halt_leave_room_for_solving() -> None:
    one = Footprint(running=100, halted=30)
    assert one.halting(batches=4, room=300, solving=180) == 4  # all four wait while a layer is solved
    assert one.halting(batches=4, room=299, solving=180) == 3
    assert one.halting(batches=4, room=299, solving=250) == 1
    assert one.halting(batches=4, room=299, solving=1000) == 0


def test_a_footprint_grows_with_the_micro_batch_not_with_the_samples() -> None:
    few, many = (footprint([64, 128], (samples, 512, 64)) for samples in (8, 800))
    assert few == many
    assert few.running > few.halted > 4 * activations.BATCH_TOKENS * 128
