"""Earlier errors made up for, in the walk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from qdeploy import pipeline
from qdeploy.calibration.tokenizer import load_tokenizer
from qdeploy.methods import basis
from qdeploy.methods.base import LinearProblem, Solution, solve
from qdeploy.methods.gptq import GPTQ
from qdeploy.pipeline import quantize
from tests.qdeploy.test_estimate import corrected
from tests.qdeploy.test_pipeline import recipe, unpacked


@torch.no_grad()
def test_making_up_for_errors_brings_the_stream_back(tiny_llama: Path, tmp_path: Path) -> None:
    """What leaves the blocks is nearer to the 16-bit model's, for the calibration text as a whole."""
    asked = recipe(tiny_llama, scheme="W3A16", calibration={"samples": 32, "sequence_length": 64})
    tokens = pipeline.load_calibration(asked.calibration, load_tokenizer(tiny_llama)).tokens

    def states(folder: Path) -> Tensor:
        model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).model
        model.norm = torch.nn.Identity()
        for name, layer in unpacked(folder).items() if folder != tiny_llama else ():
            model.get_submodule(name.removeprefix("model.")).weight.data = layer.dequantize()
        return Tensor(model(tokens).last_hidden_state)

    wanted, missed = states(tiny_llama), {}
    for correction in (0.0, 0.5):
        output = tmp_path / str(correction)
        quantize(corrected(asked, correction), output)
        missed[correction] = float((states(output) - wanted).norm())
    assert missed[0.5] < 0.95 * missed[0.0]


@pytest.mark.parametrize(
    ("in_order", "writers"),
    [(True, ["o_proj", "down_proj"]), (False, ["down_proj"])],
    ids=["in order", "together"],
)
def test_layers_solved_together_do_not_make_up_for_the_same_errors(
    in_order: bool, writers: list[str], tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrected_layers = []

    def watched(config: GPTQ, problem: LinearProblem) -> Solution:
        if problem.lack is not None:
            corrected_layers.append(problem.name.rpartition(".")[2])
        return solve(config, problem)

    monkeypatch.setattr(basis, "solve", watched)
    asked = recipe(tiny_llama).model_copy(update={"true_sequential": in_order})
    quantize(asked, tmp_path / "out")
    assert corrected_layers == 2 * writers  # blocks
