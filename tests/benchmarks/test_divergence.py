"""Exact KL divergence of a quantized folder from its model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from benchmarks.divergence import Scorer
from qdeploy.formats.dequantize import dequantized_model
from qdeploy.pipeline import quantize
from qdeploy.recipe import Recipe
from qdeploy.schemes import INT8_PER_TOKEN


@pytest.fixture
def windows() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {"a": torch.randint(256, (5, 16)), "b": torch.randint(256, (1, 16))}


def test_a_model_does_not_diverge_from_itself(tiny_llama: Path, windows: dict[str, torch.Tensor]) -> None:
    found = Scorer(tiny_llama, windows).score(tiny_llama)
    assert {name: score.divergence for name, score in found.items()} == {"a": 0, "b": 0}
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    for name, tokens in windows.items():
        with torch.no_grad():
            loss = model(tokens, labels=tokens).loss
        assert found[name].perplexity == pytest.approx(float(loss.exp()), rel=1e-4)


def test_it_is_the_divergence_that_torch_computes(
    tiny_llama: Path, tmp_path: Path, windows: dict[str, torch.Tensor]
) -> None:
    quantize(Recipe.from_flags(str(tiny_llama), method="rtn", group_size="32"), tmp_path / "out")
    scorer = Scorer(tiny_llama, windows)
    found = scorer.score(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    with torch.no_grad():
        p = model(windows["a"]).logits.log_softmax(-1).flatten(0, 1)
        q = dequantized_model(tmp_path / "out")(windows["a"]).logits.log_softmax(-1).flatten(0, 1)
    expected = torch.nn.functional.kl_div(q, p, reduction="batchmean", log_target=True)
    assert found["a"].divergence == pytest.approx(float(expected), rel=1e-4)
    assert found["a"].divergence > 0
    # What was scored before leaves no trace.
    assert [score.divergence for score in scorer.score(tiny_llama).values()] == [0, 0]


def test_a_head_of_its_own_is_scored_for_a_model_without(
    tiny_model: Callable[[str], Path], tmp_path: Path, windows: dict[str, torch.Tensor]
) -> None:
    source = tiny_model("qwen2")
    flags = {"scheme": "W8A16", "method": "rotation+rtn", "group_size": "32"}
    quantize(Recipe.from_flags(str(source), **flags), tmp_path / "out")
    scorer = Scorer(source, windows)
    found = scorer.score(tmp_path / "out")
    with torch.no_grad():
        p, q = (
            dequantized_model(folder)(windows["a"]).logits.log_softmax(-1).flatten(0, 1)
            for folder in (source, tmp_path / "out")
        )
    expected = torch.nn.functional.kl_div(q, p, reduction="batchmean", log_target=True)
    # The model's own head comes back where a folder has none.
    assert [score.divergence for score in scorer.score(source).values()] == [0, 0]
    assert found["a"].divergence == pytest.approx(float(expected), rel=1e-3)


def test_8_bit_activations_are_scored_as_engines_compute_them(
    tiny_llama: Path, tmp_path: Path, windows: dict[str, torch.Tensor]
) -> None:
    asked = Recipe.from_flags(str(tiny_llama), scheme="W8A8", method="rtn")
    quantize(asked, tmp_path / "out")
    scorer = Scorer(tiny_llama, windows)
    with_them = scorer.score(tmp_path / "out")["a"].divergence
    model = dequantized_model(tmp_path / "out")
    tensors = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((tiny_llama / "config.json").read_text())
    assert with_them > 1.2 * scorer.score(tmp_path)["a"].divergence > 0
    assert [score.divergence for score in scorer.score(tiny_llama).values()] == [0, 0]


def test_inputs_can_be_rounded_that_no_scheme_rounds(
    tiny_llama: Path, tmp_path: Path, windows: dict[str, torch.Tensor]
) -> None:
    """Weights of W8A8 are those of W8A16 by channel."""
    for name, scheme, group in (("both", "W8A8", None), ("weights", "W8A16", "channel")):
        quantize(
            Recipe.from_flags(str(tiny_llama), scheme=scheme, method="rtn", group_size=group), tmp_path / name
        )
    scorer = Scorer(tiny_llama, windows)
    both, weights = scorer.score(tmp_path / "both"), scorer.score(tmp_path / "weights")
    assert scorer.score(tmp_path / "weights", INT8_PER_TOKEN) == both != weights


def test_a_folder_that_lacks_a_weight_is_not_scored(
    tiny_llama: Path, tmp_path: Path, windows: dict[str, torch.Tensor]
) -> None:
    tensors = load_file(tiny_llama / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((tiny_llama / "config.json").read_text())
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj"):
        Scorer(tiny_llama, windows).score(tmp_path)
