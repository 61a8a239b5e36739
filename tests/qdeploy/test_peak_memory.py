"""How much memory a run takes, measured by the kernel in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.converting import measured as converting
from benchmarks.synthetic import save_packed
from qdeploy.conversion import convert
from qdeploy.memory import Budget
from qdeploy.recipe import Recipe
from qdeploy.schemes import Scheme
from tests.conftest import save_tiny
from tests.peak import measured
from tests.qdeploy.test_estimate import estimated

HIDDEN, WIDE = 256, 1024
W4 = Scheme("W4A16", 4, 128)
CALIBRATION = {"samples": 16, "sequence_length": 256}


def llama(folder: Path, layers: int, wide: int = WIDE) -> Path:
    return save_tiny(
        folder, "llama", hidden_size=HIDDEN, intermediate_size=wide, num_hidden_layers=layers, head_dim=64
    )


@pytest.mark.parametrize("method", ["gptq", "smoothquant+awq+gptq"])
def test_four_times_the_layers_take_no_more_memory(tiny_llama: Path, tmp_path: Path, method: str) -> None:
    few, many = llama(tmp_path / "few", 2), llama(tmp_path / "many", 8)
    asked = Recipe.from_flags(str(few), method=method, group_size="64", calibration=CALIBRATION)
    (tmp_path / "recipe.yaml").write_text(asked.to_yaml())
    # Micro-batches wait inside a block while its layers are solved: both are to fit.
    limits = Budget(3 * estimated(asked).solving)
    needed = estimated(asked, limits)
    assert not needed.is_ample  # where memory is ample, freed tensors are kept
    peaks = []
    for model in (few, many):
        output = tmp_path / f"{model.name}-out" / "out"
        found = measured(tiny_llama, model, tmp_path / "recipe.yaml", output, limits.memory)
        peaks.append(found["peak"] - found["baseline"])
    assert peaks[1] < 1.05 * peaks[0]
    assert max(peaks) <= needed.bound
    assert peaks == pytest.approx([needed.in_use] * 2, rel=0.2)
    # A budget that nothing is made of would prove nothing, nor would layers too small to show if they stayed.
    assert min(peaks) > 0.5 * limits.memory
    assert 6 * needed.block > 2 * 0.05 * peaks[0]


def sharded(model: Path) -> Path:
    """The model in a file for each large tensor: a file that is read is mapped, and counted, whole."""
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(
        model, max_shard_size="200KB"
    )
    (model / "model.safetensors").unlink(missing_ok=True)
    return model


def test_a_model_larger_than_the_memory_that_it_may_take(tiny_llama: Path, tmp_path: Path) -> None:
    model, room = sharded(llama(tmp_path / "large", 72, WIDE // 2)), 64 << 20
    assert sum(file.stat().st_size for file in model.glob("*.safetensors")) > 1.2 * room
    asked = Recipe.from_flags(str(model), group_size="64", calibration={"samples": 4, "sequence_length": 64})
    (tmp_path / "recipe.yaml").write_text(asked.to_yaml())
    budget = estimated(asked).solving
    measured(tiny_llama, model, tmp_path / "recipe.yaml", tmp_path / "enough" / "out", budget, room)
    assert (tmp_path / "enough" / "out" / "qdeploy.json").is_file()
    # It is a limit: with a quarter of it the same run ends. What fails first, and so the message, varies.
    with pytest.raises(AssertionError):
        measured(tiny_llama, model, tmp_path / "recipe.yaml", tmp_path / "less" / "out", budget, room // 4)


@pytest.mark.parametrize("target", ["gptq", "awq", "modelopt"])
def test_converting_takes_no_more_than_two_files_worth(tmp_path: Path, target: str) -> None:
    """However many files there are, for a layer at a time is in memory; N at a time take N times that."""
    warm, source = (tmp_path / name / "compressed-tensors" for name in ("warm", "large"))
    save_packed(warm, 1, 256, W4)
    save_packed(source, 8, 1536, W4)
    shard = max(file.stat().st_size for file in source.glob("*.safetensors"))
    for jobs in (1, 2):
        there = converting(warm, source, tmp_path / f"there-{jobs}", target, jobs=jobs)
        assert there.peak < 2 * jobs * shard
    # A process that took nothing would prove nothing.
    assert there.peak > shard / 4
    convert(warm, tmp_path / "packed", target)
    back = converting(tmp_path / "packed", tmp_path / "there-1", tmp_path / "back", "compressed-tensors")
    assert back.peak < 2 * shard
