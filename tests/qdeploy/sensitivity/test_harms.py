"""Both scores against the model itself, and against each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from qdeploy.methods.grid import search
from qdeploy.modeling.experts import split_experts
from qdeploy.rounded_inputs import round_inputs
from qdeploy.schemes import Scheme
from qdeploy.sensitivity.candidates import Choice
from qdeploy.sensitivity.divergence import measured_harms, measured_together
from qdeploy.sensitivity.gradient import gradient_harms
from qdeploy.sensitivity.subject import Recorded, record
from tests.qdeploy.sensitivity.problems import W4, W4_ASYM, W6, W8, W8A8, subject, unseen

FAMILIES = ("llama", "gemma3_text", "qwen3_moe")


@pytest.fixture(params=FAMILIES)
def recorded(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path], tmp_path: Path) -> Recorded:
    tried = subject(tiny_model(request.param), [W4, W6, W8A8], tmp_path)
    return record(tried, unseen(), copies=len(tried.trials))


@torch.no_grad()
def divergence(folder: Path, schemes: Mapping[str, Scheme], tokens: Tensor) -> float:
    """KL of transformers' own model with these layers rounded."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    split_experts(model)
    p = model(tokens).logits.log_softmax(-1)
    for name, scheme in schemes.items():
        layer = model.get_submodule(name)
        layer.weight.copy_(search(layer.weight.detach().clone(), scheme).nearest(layer.weight).dequantize())
    round_inputs(model, schemes)
    q = model(tokens).logits.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).double().mean())


def test_the_measured_harm_is_that_of_the_model(recorded: Recorded) -> None:
    tried, found = recorded.subject, measured_harms(recorded, unseen())
    for unit, scheme in tried.trials[::4]:
        expected = divergence(tried.reader.folder, dict.fromkeys(unit.layers, scheme), tried.tokens)
        assert found[unit.name, scheme].nats == pytest.approx(expected, rel=0.02, abs=1e-7)


def test_all_units_together_are_measured_as_one_model(recorded: Recorded) -> None:
    tried = recorded.subject
    chosen: dict[str, Choice] = {unit.name: (W4, None, W8A8)[i % 3] for i, unit in enumerate(tried.units)}
    schemes = {name: s for unit in tried.units if (s := chosen[unit.name]) for name in unit.layers}
    expected = divergence(tried.reader.folder, schemes, tried.tokens)
    assert measured_together(recorded, chosen, unseen()).nats == pytest.approx(expected, rel=0.01)


def test_nothing_rounded_does_no_harm(recorded: Recorded) -> None:
    nothing: dict[str, Choice] = {unit.name: None for unit in recorded.subject.units}
    assert measured_together(recorded, nothing, unseen()).nats < 1e-9


def test_the_gradient_score_is_the_harm_of_small_changes(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """With 6 bits; by 4 standard errors, and a tenth for what is beyond second order and sampling of text."""
    tried = subject(tiny_model("llama"), [W6, W8A8], tmp_path, samples=8)
    recorded = record(tried, unseen(), copies=len(tried.trials))
    guessed, true = gradient_harms(recorded, 128, 0, unseen()), measured_harms(recorded, unseen())
    for trial, harm in true.items():
        error = guessed[trial].error
        assert error is not None
        assert error < 0.1 * guessed[trial].nats
        assert abs(guessed[trial].nats - harm.nats) < 4 * error + 0.1 * harm.nats
    totals = [sum(harm.nats for harm in harms.values()) for harms in (guessed, true)]
    assert totals[0] == pytest.approx(totals[1], rel=0.1)


def test_the_gradient_score_nears_the_harm_as_changes_shrink(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    tried = subject(tiny_model("llama"), [Scheme("W2A16", 2, 32), W6], tmp_path, samples=8)
    recorded = record(tried, unseen(), copies=len(tried.trials))
    guessed, true = gradient_harms(recorded, 128, 0, unseen()), measured_harms(recorded, unseen())
    off: dict[int, float] = {}
    for bits in (2, 6):
        keys = [key for key in true if key[1].bits == bits]
        off[bits] = sum(abs(guessed[key].nats / true[key].nats - 1) for key in keys) / len(keys)
    assert off[6] < off[2]


def test_gradients_order_experts_and_dense_layers_as_measured(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    tried = subject(tiny_model("qwen3_moe"), [W4], tmp_path, samples=8)
    recorded = record(tried, unseen(), copies=len(tried.trials))
    guessed, true = gradient_harms(recorded, 64, 0, unseen()), measured_harms(recorded, unseen())
    for trial, harm in true.items():
        assert harm.nats / 3 < guessed[trial].nats < 3 * harm.nats


def test_the_seed_alone_decides_the_labels(tiny_llama: Path, tmp_path: Path) -> None:
    tried = subject(tiny_llama, [W4, W4_ASYM], tmp_path)
    once = gradient_harms(record(tried, unseen()), 4, 0, unseen())
    again = gradient_harms(record(tried, unseen()), 4, 0, unseen())
    other = gradient_harms(record(tried, unseen()), 4, 1, unseen())
    assert once == again
    assert once != other
    assert once.keys() == {(unit.name, scheme) for unit, scheme in tried.trials}
    fewer = subject(tiny_llama, [W8, W4_ASYM], tmp_path)
    apart = gradient_harms(record(fewer, unseen()), 4, 0, unseen())
    for unit in tried.units:  # what else is tried changes nothing
        assert apart[unit.name, W4_ASYM].nats == pytest.approx(once[unit.name, W4_ASYM].nats, rel=1e-4)
