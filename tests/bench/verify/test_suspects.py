from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qdeploy.bench.misreadings import misreadings
from qdeploy.bench.reference import Array, token_logprobs
from qdeploy.bench.suspects import Candidate, candidates, find_suspects, misread
from qdeploy.formats import bits
from qdeploy.formats.compressed_tensors import module_schemes
from qdeploy.formats.dequantize import dequantized_model
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.quantized import QuantizedLinear
from qdeploy.schemes import Scheme
from tests.packed import W4A16, W4A16_ASYM, W8A8, round_to_nearest, swap_nibbles

LAYER = "model.layers.1.mlp.up_proj"
SWAPPED = "neighbouring codes swapped"
TOLERANCE = 0.02
"""Nats, twice the noise of this model in bfloat16."""
WINDOW = np.random.default_rng(0).integers(0, 256, 64).tolist()


@pytest.fixture(scope="module")
def engine(quantized_mlps: Path) -> Any:
    """What computes like an engine: bfloat16, attention by another algorithm than the reference's."""
    model = dequantized_model(quantized_mlps, torch.bfloat16)
    model.set_attn_implementation("eager")
    return model


def all_candidates(folder: Path) -> list[Candidate]:
    reader = CheckpointReader(folder)
    return list(candidates(module_schemes(reader.config, reader)))


def fault(folder: Path, where: str, misreading: str) -> Candidate:
    return next(c for c in all_candidates(folder) if (c.where, c.misreading) == (where, misreading))


def served(folder: Path, engine: Any, candidate: Candidate) -> Array:
    """What an engine serves that misreads these layers."""
    with misread(folder, engine, candidate):
        return token_logprobs(engine, WINDOW)


@pytest.mark.parametrize(
    ("where", "misreading"),
    [
        (LAYER, SWAPPED),
        (LAYER, "zero points one too high"),
        (LAYER, "scales shifted by one"),
        ("every down_proj", SWAPPED),
        ("every layer", SWAPPED),
    ],
)
def test_what_the_engine_misreads_is_named_first(
    quantized_mlps: Path, engine: Any, where: str, misreading: str
) -> None:
    found = find_suspects(
        quantized_mlps,
        WINDOW,
        served(quantized_mlps, engine, fault(quantized_mlps, where, misreading)),
        TOLERANCE,
    )
    assert (found.suspects[0].where, found.suspects[0].misreading) == (where, misreading)
    assert found.suspects[0].similarity > 0.95
    assert found.tried == found.candidates == len(all_candidates(quantized_mlps))


def test_the_suspects_are_different_places_best_first(
    quantized_mlps: Path, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = served(quantized_mlps, engine, fault(quantized_mlps, "model.layers.0.mlp.gate_proj", SWAPPED))
    monkeypatch.setattr("qdeploy.bench.suspects.SIMILAR", -1.0)
    suspects = find_suspects(quantized_mlps, WINDOW, values, 100.0).suspects
    assert len(suspects) == len({suspect.where for suspect in suspects}) == 3
    assert suspects == sorted(suspects, key=lambda suspect: suspect.remainder)


def test_noise_accuses_nobody(quantized_mlps: Path) -> None:
    exact = token_logprobs(dequantized_model(quantized_mlps), WINDOW)
    found = find_suspects(
        quantized_mlps, WINDOW, exact + np.random.default_rng(1).normal(size=exact.size), 0.5
    )
    assert not found.suspects
    assert "No misreading of a single layer" in found.describe()


def test_another_fault_that_destroys_the_model_accuses_nobody(quantized_mlps: Path) -> None:
    model = dequantized_model(quantized_mlps)
    torch.nn.init.zeros_(model.lm_head.weight)
    found = find_suspects(quantized_mlps, WINDOW, token_logprobs(model, WINDOW), TOLERANCE)
    assert not found.suspects


def test_the_search_ends_when_its_time_is_over(
    quantized_mlps: Path, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = served(quantized_mlps, engine, fault(quantized_mlps, LAYER, SWAPPED))
    monkeypatch.setattr("qdeploy.bench.suspects.SEARCH_S", 0.0)
    found = find_suspects(quantized_mlps, WINDOW, values, TOLERANCE)
    assert (found.suspects, found.tried) == ([], 0)
    assert f"0 of {found.candidates}" in found.describe()


def test_the_model_is_itself_again_after_a_misreading(quantized_mlps: Path) -> None:
    model = dequantized_model(quantized_mlps)
    exact = token_logprobs(model, WINDOW)
    with misread(quantized_mlps, model, fault(quantized_mlps, "every layer", SWAPPED)):
        assert not np.array_equal(token_logprobs(model, WINDOW), exact)
    np.testing.assert_array_equal(token_logprobs(model, WINDOW), exact)


@pytest.mark.parametrize("scheme", [W4A16, W4A16_ASYM, W8A8], ids=lambda scheme: scheme.name)
def test_every_misreading_changes_a_layer_within_its_grid(scheme: Scheme) -> None:
    q = round_to_nearest(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)), scheme)
    for name, misreading in misreadings(scheme).items():
        wrong = misreading(q)
        assert wrong.codes.shape == q.codes.shape
        assert wrong.scales.shape == q.scales.shape
        assert int(wrong.codes.max()) <= scheme.qmax
        assert not torch.equal(wrong.dequantize(), q.dequantize()), name


def test_swapped_codes_are_swapped_nibbles_of_the_packed_words() -> None:
    q: QuantizedLinear = round_to_nearest(torch.randn(8, 64), W4A16)
    wrong = misreadings(W4A16)[SWAPPED](q)
    assert torch.equal(bits.pack(wrong.codes, 4), swap_nibbles(bits.pack(q.codes, 4)))


def test_awq_order_is_that_of_autoawq() -> None:
    """A reader of the GEMM layout takes columns 0 … 7 from fields 0, 4, 1, 5, 2, 6, 3, 7."""
    codes = torch.arange(8, dtype=torch.uint8).repeat(1, 4)
    q = QuantizedLinear(codes, torch.ones(1, 1), None, W4A16)
    assert misreadings(W4A16)["codes in AWQ order"](q).codes[0, :8].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
