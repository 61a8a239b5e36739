"""DeepSeek's models: latent attention, and a buffer that routers add to the scores of experts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from qdeploy.errors import CheckpointError, RecipeError
from qdeploy.formats.dequantize import dequantized_model
from qdeploy.modeling.blocks import find_blocks
from qdeploy.modeling.checkpoint import SINGLE, CheckpointReader
from qdeploy.modeling.experts import split_experts
from qdeploy.modeling.skeleton import build_skeleton, materialize, materialize_buffers
from qdeploy.pipeline import quantize
from tests.conftest import save_tiny
from tests.qdeploy.test_pipeline import recipe

BUFFER = "model.layers.1.mlp.gate.e_score_correction_bias"
TOKENS = torch.arange(20)[None]
CONFIG = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": None,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny(tmp_path_factory.mktemp("deepseek"), "deepseek_v3", **CONFIG)
    # Zeros, as a new model has them, would hide that they are not read.
    edit(folder, torch.tensor([0.3, -0.2, 0.1, 0.0]))
    return folder


def edit(folder: Path, buffer: Tensor | None) -> None:
    """Replace the buffer, or remove it."""
    tensors = load_file(folder / SINGLE)
    del tensors[BUFFER]
    save_file(tensors | ({} if buffer is None else {BUFFER: buffer}), folder / SINGLE)


@torch.no_grad()
def logits(folder: Path) -> Tensor:
    found: Tensor = dequantized_model(folder)(TOKENS).logits
    return found


def test_stored_buffers_are_loaded(model: Path) -> None:
    reader = CheckpointReader(model)
    skeleton = build_skeleton(reader)
    materialize_buffers(skeleton, reader, torch.device("cpu"))
    expected = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    split_experts(expected)
    for name, buffer in expected.named_buffers():
        assert torch.equal(skeleton.get_buffer(name), buffer), name
    block = find_blocks(skeleton)[1]
    materialize(skeleton, block.parameters, reader, torch.device("cpu"))
    assert not any(tensor.is_meta for tensor in (*block.module.parameters(), *block.module.buffers()))


def test_a_checkpoint_without_the_buffer_is_refused(model: Path, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "deepseek_v3", **CONFIG)
    edit(folder, None)
    with pytest.raises(CheckpointError, match=r"1 of \d+ differ, the first .*e_score_correction_bias"):
        build_skeleton(CheckpointReader(folder))


@pytest.mark.parametrize("method", ["gptq", "awq+gptq", "smoothquant+rtn", "rotation+gptq", "autoround"])
def test_methods_keep_the_logits(model: Path, tmp_path: Path, method: str) -> None:
    made = quantize(recipe(model, scheme="W8A16", method=method), tmp_path / "out")
    assert len(made["modules"]) == 4 + 3 + 4 + 3 * 5
    before, after = logits(model), logits(tmp_path / "out")
    # Of most tokens: the smallest error sends one that wavers between two experts to the other.
    assert ((after - before).norm(dim=-1) / before.norm(dim=-1)).median() < 0.03
    assert torch.equal(CheckpointReader(tmp_path / "out").get(BUFFER), CheckpointReader(model).get(BUFFER))


def test_its_cache_has_no_scales(model: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"kv_cache fp8: DeepseekV3ForCausalLM .* Leave kv_cache out"):
        quantize(recipe(model, method="rtn", kv_cache="fp8"), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))
