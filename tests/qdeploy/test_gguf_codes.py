"""GGUF files whose codes are kept: the folder stands for what the blocks say, to the last bit."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as BlockType
from typer.testing import CliRunner

from qdeploy.cli.main import build
from qdeploy.conversion import convert
from qdeploy.errors import ConversionError, OutputError
from qdeploy.formats.dequantize import dequantized_model, dequantized_state
from qdeploy.formats.packed import Packed
from qdeploy.gguf_codes import import_codes
from qdeploy.modeling.checkpoint import CheckpointReader
from tests.qdeploy.test_gguf import NAMES, decoded
from tests.qdeploy.tiny_gguf import LINEARS, write_tiny_gguf


@pytest.mark.parametrize(("kind", "scheme"), [(BlockType.Q4_0, "W4A16"), (BlockType.Q8_0, "W8A16")])
def test_layers_stand_for_what_their_blocks_say(kind: BlockType, scheme: str, tmp_path: Path) -> None:
    stored = write_tiny_gguf(tmp_path / "tiny.gguf", kind)
    summary = import_codes(tmp_path / "tiny.gguf", tmp_path / "out")
    assert summary.kept == {kind.name: len(LINEARS)}
    packed = Packed(CheckpointReader(tmp_path / "out"))
    for name, module in NAMES.items():
        q = packed.read(f"model.layers.0.{module}")
        assert (q.scheme.name, q.scheme.group_size, q.scales.dtype) == (scheme, 32, torch.float16)
        assert torch.equal(q.dequantize(), decoded(name, stored[f"blk.0.{name}.weight"], kind)), name
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["out", "tiny.gguf"]


def test_the_folder_is_a_whole_model_in_float16(tmp_path: Path) -> None:
    stored = write_tiny_gguf(tmp_path / "tiny.gguf", BlockType.Q4_0)
    output = tmp_path / "out"
    import_codes(tmp_path / "tiny.gguf", output)
    reader = CheckpointReader(output)
    assert reader.config["dtype"] == "float16"
    assert reader.config["quantization_config"]["ignore"] == ["lm_head"]
    embeddings = torch.from_numpy(stored["token_embd.weight"]).half()
    assert torch.equal(reader.get("model.embed_tokens.weight"), embeddings)
    assert dequantized_model(output)(torch.arange(8)[None]).logits.isfinite().all()
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=output, check=True)


@pytest.mark.parametrize("target", ["gptq", "awq", "modelopt"])
def test_other_formats_hold_it_without_rounding(target: str, tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", BlockType.Q4_0)
    import_codes(tmp_path / "tiny.gguf", tmp_path / "out")
    done = convert(tmp_path / "out", tmp_path / "there", target)
    assert (done.layers, done.rounded_scales) == (len(LINEARS), 0)
    before, after = (dict(dequantized_state(tmp_path / name)) for name in ("out", "there"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (BlockType.Q4_K, r"7 of 7 quantized layers \(7 Q4_K\) are not integers"),
        (BlockType.Q4_1, r"7 of 7 quantized layers \(7 Q4_1\) are not integers"),
        (BlockType.F16, r"has no quantized layers\. Import it without --keep-codes"),
    ],
    ids=lambda value: value.name if isinstance(value, BlockType) else "",
)
def test_what_no_grid_says_is_refused(kind: BlockType, told: str, tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", kind)
    with pytest.raises(ConversionError, match=told):
        import_codes(tmp_path / "tiny.gguf", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_an_output_in_use_is_left_alone(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", BlockType.Q4_0)
    with pytest.raises(OutputError, match="in use"):
        import_codes(tmp_path / "tiny.gguf", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_the_command_says_which_codes_were_kept(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", BlockType.Q8_0)
    arguments = ["import", str(tmp_path / "tiny.gguf"), "--keep-codes", "-o", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(build(), arguments, catch_exceptions=False)
    assert json.loads(result.stdout)["kept"] == {"Q8_0": 7}
