"""What a run is said to need against what it then takes, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qdeploy import estimate as estimating
from qdeploy import shortage, stack
from qdeploy.assignment import resolve_schemes
from qdeploy.checkpoint.companions import companions
from qdeploy.errors import ResourceError
from qdeploy.estimate import HOLES, Estimate, estimate, layer_kinds
from qdeploy.files import read_json
from qdeploy.memory import Budget
from qdeploy.modeling.activations import states_bytes
from qdeploy.modeling.blocks import find_blocks
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.modeling.followed import EVERY, states_together
from qdeploy.modeling.inputs import BlockCall
from qdeploy.modeling.skeleton import build_skeleton
from qdeploy.pipeline import quantize, shapes
from qdeploy.recipe import Recipe
from qdeploy.shortage import problems_with, refuse_what_cannot_fit

AMPLE = Budget(10**9)


def recipe(folder: Path, **flags: Any) -> Recipe:
    calibration = {"samples": 4, "sequence_length": 32}
    return Recipe.from_flags(str(folder), **({"group_size": "32", "calibration": calibration} | flags))


def corrected(asked: Recipe, correction: float) -> Recipe:
    """The same with GPTQ that makes up for so much of earlier errors."""
    fields = asked.model_dump(mode="json")
    fields["rules"][0]["stages"] = [{"gptq": {"correction": correction}}]
    return Recipe.model_validate(fields)


def estimated(asked: Recipe, limits: Budget = AMPLE) -> Estimate:
    reader = CheckpointReader(Path(asked.model))
    model = build_skeleton(reader)
    blocks = find_blocks(model)
    plan = resolve_schemes(asked, shapes(blocks))
    return estimate(asked, reader, model, blocks, plan, limits)


@pytest.mark.parametrize(
    "flags",
    [{}, {"symmetric": False}, {"scheme": "W8A16"}, {"scheme": "W8A8", "group_size": None}],
    ids=["W4A16", "W4A16_ASYM", "W8A16", "W8A8"],
)
def test_the_checkpoint_takes_what_was_said(tiny_family: Path, tmp_path: Path, flags: dict[str, Any]) -> None:
    asked = recipe(tiny_family, method="rtn", **flags)
    quantize(asked, tmp_path / "out")
    tensors = read_json(tmp_path / "out" / "model.safetensors.index.json")["metadata"]["total_size"]
    others = sum(path.stat().st_size for path in companions(tiny_family))
    assert estimated(asked).output == tensors + others


def test_more_samples_move_only_what_waits_or_spills(tiny_llama: Path) -> None:
    few, many = (
        estimated(recipe(tiny_llama, calibration={"samples": samples, "sequence_length": 256}), Budget(2**25))
        for samples in (32, 3200)
    )
    assert (few.running, few.block, few.hessians, few.output) == (
        many.running,
        many.block,
        many.hessians,
        many.output,
    )
    assert few.spilled == 0 < few.states
    assert many.spilled == 100 * few.states
    assert many.states == 0
    assert many.memory <= many.libraries + many.block + many.hessians + many.solving + 2**25


def test_making_up_for_errors_takes_the_16_bit_models_states_too(tiny_llama: Path) -> None:
    asked = recipe(tiny_llama)
    with_it, without = estimated(corrected(asked, 0.5)), estimated(corrected(asked, 0.0))
    assert without.states == states_bytes((4, 32, 64))
    assert with_it.states == states_together((4, 32, 64), EVERY) == 2 * without.states
    # down_proj [64, 128] reads the widest input.
    assert (without.hessians, with_it.hessians) == (4 * 128**2, 4 * 128**2 + 4 * 64 * 128)
    assert with_it.solving >= without.solving


def test_holes_in_the_heap_are_allowed_where_twice_as_much_may_be_taken(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(tiny_llama)
    ample = estimated(asked)
    assert ample.is_ample
    assert ample.memory - ample.libraries == ample.in_use + ample.in_use // HOLES
    tight = estimated(asked, Budget(ample.in_use))
    assert tight.bound < 2 * tight.in_use
    assert not tight.is_ample
    assert tight.memory - tight.libraries == tight.in_use
    monkeypatch.setattr(estimating, "free_memory", lambda: 2 * ample.in_use - 1)
    assert not estimated(asked).is_ample


def test_rounding_to_nearest_needs_no_activations(tiny_llama: Path) -> None:
    needed = estimated(recipe(tiny_llama, method="rtn"))
    assert (needed.states, needed.running, needed.halted, needed.hessians, needed.embeddings) == (
        0,
        0,
        0,
        0,
        0,
    )


def test_a_gpu_takes_over_all_but_the_hidden_states(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimating, "multiplies_bfloat16", lambda: False)  # a processor's own
    here, there = estimated(recipe(tiny_llama)), estimated(recipe(tiny_llama), Budget(10**9, 10**9))
    assert there.device == here.model_peak
    assert there.in_use == here.states
    assert here.device == 0


def test_layers_are_counted_by_kind(tiny_llama: Path) -> None:
    asked = recipe(tiny_llama)
    blocks = find_blocks(build_skeleton(CheckpointReader(tiny_llama)))
    kinds = layer_kinds(resolve_schemes(asked, shapes(blocks)), blocks)
    assert [kind.name for kind in kinds][-1] == "mlp.down_proj"
    assert all(kind.count == 2 for kind in kinds)
    assert (kinds[-1].shape, kinds[-1].hessian_bytes) == ((64, 128), 4 * 128**2)


def test_too_little_ram_is_refused_before_anything_is_written(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shortage, "free_memory", lambda: 1 << 20)
    with pytest.raises(
        ResourceError, match=r"needs .* of RAM, 1\.00 MiB are free\. Free .*--force"
    ) as raised:
        quantize(recipe(tiny_llama), tmp_path / "out")
    assert raised.value.exit_code == 2
    assert not list(tmp_path.iterdir())
    quantize(recipe(tiny_llama), tmp_path / "out", force=True)


def test_a_smaller_budget_is_proposed_where_one_is_enough(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = estimated(recipe(tiny_llama, calibration={"samples": 400, "sequence_length": 256}))
    monkeypatch.setattr(shortage, "free_memory", lambda: needed.memory - needed.libraries)
    (problem,) = problems_with(needed, tmp_path / "out")
    proposed = int(problem.split("--activation-memory ")[1].split("MiB")[0]) << 20
    assert needed.least_budget <= proposed < needed.running + needed.halted + needed.states
    monkeypatch.setattr(shortage, "free_memory", lambda: 10 * needed.memory)
    refuse_what_cannot_fit(needed, tmp_path / "out")


def test_a_full_disk_is_refused_with_the_bytes_that_are_missing(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = estimated(recipe(tiny_llama))
    monkeypatch.setattr(shortage, "free_disk", lambda _: needed.output - 5 * 1024)
    with pytest.raises(ResourceError, match=r"on the disk of .*Make room for 5\.00 KiB, or .* -o"):
        quantize(recipe(tiny_llama), tmp_path / "out")
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "rest.safetensors").write_bytes(bytes(6 * 1024))  # what is there needs no room any more
    refuse_what_cannot_fit(needed, tmp_path / "out")


def test_a_full_gpu_is_refused(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = estimated(recipe(tiny_llama), Budget(10**9, 10**9))
    monkeypatch.setattr(shortage, "free_device", lambda: 1000)
    (problem,) = problems_with(needed, tmp_path / "out")
    assert "of GPU memory, 1000 bytes are free" in problem


def test_a_budget_below_one_micro_batch_is_refused_with_one_that_works(
    tiny_llama: Path, tmp_path: Path
) -> None:
    asked = recipe(tiny_llama)
    with pytest.raises(ResourceError, match=r"One micro-batch takes .* Give --activation-memory 1MiB"):
        quantize(asked, tmp_path / "out", limits=Budget(1000))
    quantize(asked, tmp_path / "out", limits=Budget(1 << 20))


def test_the_least_budget_is_enough_whatever_share_the_states_take(tiny_llama: Path) -> None:
    for samples in (1, 4, 64, 1000):
        asked = recipe(tiny_llama, calibration={"samples": samples, "sequence_length": 32})
        least = estimated(asked).least_budget
        needed = estimated(asked, Budget(least))
        assert needed.running <= needed.limits.inside(needed.states)
        assert replace(needed, libraries=0).memory <= needed.block + needed.hessians + needed.solving + least


def test_copies_in_bfloat16_count_where_a_processor_multiplies_them(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def block(bfloat16: bool, limits: Budget = AMPLE, **flags: Any) -> int:
        monkeypatch.setattr(estimating, "multiplies_bfloat16", lambda: bfloat16)
        return estimated(recipe(tiny_llama, **flags), limits).block

    linears = find_blocks(build_skeleton(CheckpointReader(tiny_llama)))[0].linears().values()
    assert block(True) - block(False) == 2 * sum(linear.weight.numel() for linear in linears)
    on_gpu, without_data = Budget(10**9, device=10**9), {"method": "rtn"}
    assert block(True, on_gpu) == block(False, on_gpu)
    assert block(True, **without_data) == block(False, **without_data)


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("unable to mmap 9 bytes from file <x>: Cannot allocate memory (12)"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
    ids=str,
)
def test_memory_that_runs_out_on_the_way_is_told_with_what_to_change(
    error: Exception, kept: bool, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, solved = recipe(tiny_llama), stack.quantize_with_data

    def fails_in_the_second_block(call: BlockCall, *args: Any, **kwargs: Any) -> Any:
        if call.block.name.endswith(".1"):
            raise error
        return solved(call, *args, **kwargs)

    with monkeypatch.context() as broken:
        broken.setattr(stack, "quantize_with_data", fails_in_the_second_block)
        with pytest.raises(ResourceError if kept else type(error)) as found:
            quantize(asked, tmp_path / "out")
    if kept:
        message = str(found.value)
        assert message.startswith(
            f"Out of memory ({str(error) or 'no more is to be had'}) after 1 of 2 blocks"
        )
        assert "The same command goes on from there." in message
        assert re.search(
            r"Give --activation-memory 1MiB \(activations were to take [\d.]+ KiB\)|Close other", message
        )
    quantize(asked, tmp_path / "out")


def test_less_memory_is_advised_where_a_micro_batch_still_runs(tiny_llama: Path) -> None:
    many = estimated(recipe(tiny_llama, calibration={"samples": 64, "sequence_length": 512}))
    activations = many.states + many.running + many.halted
    assert many.least_budget < activations // 2
    advice = f"Give --activation-memory {-(-(activations // 2) >> 20)}MiB (activations were to take "
    assert shortage.less_memory(many).startswith(advice)
    alone = estimated(recipe(tiny_llama, calibration={"samples": 1, "sequence_length": 512}), Budget(1))
    assert shortage.less_memory(alone).startswith("Close other programs")
