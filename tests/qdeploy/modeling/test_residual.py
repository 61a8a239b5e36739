"""Which layers write to the residual stream, and what it holds in the 16-bit model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qdeploy.memory import Budget
from qdeploy.modeling import activations as activating
from qdeploy.modeling.activations import Activations
from qdeploy.modeling.blocks import find_blocks
from qdeploy.modeling.followed import EVERY, Followed, states_together
from qdeploy.modeling.inputs import BlockCall, embed, record_calls
from qdeploy.modeling.residual import Reference, Targets, Writer, find_writers
from tests.qdeploy.modeling.test_inputs import load

CPU = torch.device("cpu")
SAMPLES, LENGTH = 5, 16
TOKENS = torch.randint(0, 256, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(0))
ATTENTION = ("self_attn.o_proj", "", "post_attention_layernorm")
MLP = ("mlp.down_proj", "post_attention_layernorm", "")
NOT_BOTH: dict[str, list[list[tuple[str, str, str]]]] = {
    # Its outputs are normalized before they are added.
    "gemma3_text": [[], [], []],
    # What experts put out is weighted.
    "mixtral": [[ATTENTION], [ATTENTION]],
    "qwen2_moe": [[ATTENTION], [ATTENTION]],
    "qwen3_moe": [[ATTENTION], [ATTENTION, MLP], [ATTENTION]],
}


def entered(folder: Path, spill: Path) -> tuple[Any, list[BlockCall], Activations]:
    model = load(folder)
    blocks = find_blocks(model)
    calls = record_calls(model, blocks, TOKENS, CPU)
    return model, calls, embed(model, blocks, TOKENS, CPU, spill, Budget(10**9), every=EVERY)


@torch.no_grad()
def test_writers_are_found_in_every_family(tiny_family: Path, tmp_path: Path) -> None:
    model, calls, states = entered(tiny_family, tmp_path)
    expected = NOT_BOTH.get(model.config.model_type, [[ATTENTION, MLP]] * len(calls))
    for call, wanted in zip(calls, expected, strict=True):
        found = find_writers(call, states[:1])
        assert found == [Writer(f"{call.block.name}.{name}", *around) for name, *around in wanted]


@torch.no_grad()
@pytest.mark.parametrize("offset", [0, 1])
def test_the_stream_is_the_16_bit_models(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: int
) -> None:
    monkeypatch.setattr(activating, "BATCH_TOKENS", 2 * LENGTH)
    model, calls, states = entered(tiny_llama, tmp_path)
    streams: dict[str, list[Tensor]] = {"inside": [], "between": []}
    for call in calls:
        norm = call.block.module.post_attention_layernorm
        norm.register_forward_pre_hook(lambda _, args: streams["inside"].append(args[0].clone()))
        call.block.module.register_forward_hook(lambda *given: streams["between"].append(given[2].clone()))
    model(TOKENS, use_cache=False)
    expected = {name: list(found) for name, found in streams.items()}

    reference = Reference(states, offset)
    for i, call in enumerate(calls):
        attention, mlp = reference.run(call, states).values()
        chosen = slice(offset % EVERY, None, EVERY)
        torch.testing.assert_close(attention[:], expected["inside"][i][chosen])
        torch.testing.assert_close(mlp[:], expected["between"][i][chosen])
        for batch in states.batches():
            states[batch] = torch.randn_like(states[batch])  # the quantized model's do not matter


@torch.no_grad()
def test_without_errors_the_target_is_what_a_layer_puts_out(tiny_llama: Path, tmp_path: Path) -> None:
    _, calls, states = entered(tiny_llama, tmp_path)
    call, reference = calls[0], Reference(states)
    targets = Targets(call, states, reference.run(call, states), reference.followed)
    compared = []

    def compare(name: str) -> Callable[[Any, Any, Tensor], None]:
        def hook(_: Any, __: Any, y: Tensor) -> None:
            target, samples = targets.target(name, CPU)
            torch.testing.assert_close(target, y[samples])
            compared.append((name, len(target)))

        return hook

    for name, linear in call.block.linears().items():
        if name in targets:
            linear.register_forward_hook(compare(name))
    with targets.watching():
        for batch in states.batches():
            targets.at(batch)
            call(states[batch])
    assert compared == [(f"{call.block.name}.{name}", 3) for name in ("self_attn.o_proj", "mlp.down_proj")]


@torch.no_grad()
def test_a_model_without_writers_does_not_run_twice(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    _, calls, states = entered(tiny_model("gemma3_text"), tmp_path)
    reference, runs = Reference(states), []
    for call in calls:
        call.block.module.register_forward_hook(lambda *_: runs.append(1))
        assert not reference.run(call, states)
    assert len(runs) == 1  # to find out


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_processes_follow_the_samples_that_one_would(world: int, step: int) -> None:
    total = 11
    chosen = []
    for rank in range(world):
        start, stop = total * rank // world, total * (rank + 1) // world
        followed, places = Followed(start), []
        for first in range(0, stop - start, step):
            batch = slice(first, min(first + step, stop - start))
            numbers = range(start + batch.start, start + batch.stop)[followed.chosen(batch)]
            place = followed.place(batch)
            assert len(numbers) == place.stop - place.start
            places += [*range(place.start, place.stop)]
            chosen += numbers
        assert places == [*range(followed.count(stop - start))]
    assert chosen == [*range(0, total, EVERY)]


def test_the_references_states_count() -> None:
    assert states_together((4, 8, 2), None) == 4 * 4 * 8 * 2
    assert states_together((4, 8, 2), EVERY) == 2 * 4 * 4 * 8 * 2
    assert states_together((4, 8, 2), 1) == 3 * 4 * 4 * 8 * 2
