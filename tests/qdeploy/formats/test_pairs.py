"""The table of docs/formats.md: what becomes what, found by converting a tiny model.

`python -m tests.qdeploy.formats.test_pairs` prints it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import qdeploy.exporters
from qdeploy.conversion import convert
from qdeploy.errors import ConversionError
from qdeploy.formats.dequantize import dequantized_state
from qdeploy.formats.packed import FORMATS
from qdeploy.modeling.checkpoint import INDEX
from qdeploy.pipeline import quantize
from qdeploy.recipe import Recipe
from qdeploy.schemes import Scheme
from tests.conftest import save_tiny
from tests.packed import W4A16, W4A16_ASYM, W8A8, WEIGHTS, edit_tensors, quantize_folder

Build = Callable[[Path, Path], object]
"""A source from a 16-bit model, in a folder that is to be made."""

EIGHT, THREE = Scheme("W8A16", 8, None), Scheme("W3A16", 3, 32)
DOCUMENT = Path(qdeploy.exporters.__path__[0]).parent / "docs" / "formats.md"
EXACT, ROUNDED, REFUSED = "✓", "~", "✗"


def packed(scheme: Scheme) -> Build:
    return lambda model, folder: quantize_folder(model, folder, scheme)


def minifloat(scheme: str) -> Build:
    return lambda model, folder: quantize(Recipe.from_flags(str(model), scheme=scheme, method="rtn"), folder)


def then(build: Build, target: str) -> Build:
    """In another format than compressed-tensors."""

    def made(model: Path, folder: Path) -> None:
        between = folder.with_name(folder.name + "-ct")
        build(model, between)
        convert(between, folder, target)

    return made


def act_order(model: Path, folder: Path) -> None:
    """Columns whose groups are not runs."""
    then(packed(W4A16), "gptq")(model, folder)
    shard = folder / "model-00001-of-00001.safetensors"
    tensors = load_file(shard)
    flipped = {name: tensor.roll(1) for name, tensor in tensors.items() if name.endswith(".g_idx")}
    save_file(tensors | flipped, shard)


def wide_scales(model: Path, folder: Path) -> None:
    """Scales as another tool may choose them, of which some are below what float16 holds."""
    quantize_folder(model, folder, W4A16)
    tensors = load_file(folder / WEIGHTS)
    small = {name: tensor.clone() for name, tensor in tensors.items() if name.endswith(".weight_scale")}
    for tensor in small.values():
        tensor[0, 0] = 1.0e-9
    edit_tensors(folder, small)


def fbgemm(model: Path, folder: Path) -> None:
    minifloat("FP8_DYNAMIC")(model, folder)
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        scales = {name: t.float() for name, t in tensors.items() if name.endswith(".weight_scale")}
        save_file(tensors | scales, file)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "qdeploy.json").unlink()


def rounded_before_the_product(model: Path, folder: Path) -> None:
    """W4A8_AWQ, which qdeploy rounds no model to: W4A16_AWQ with its two further scales."""
    then(packed(W4A16), "modelopt")(model, folder)
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        modules = [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]
        further = {"weight_scale_2": torch.tensor(2.0**-9), "input_scale": torch.tensor(0.03)}
        added = {f"{module}.{name}": scale.clone() for module in modules for name, scale in further.items()}
        save_file(tensors | added, file)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = {
        name: file.name for file in folder.glob("*.safetensors") for name in load_file(file)
    }
    (folder / INDEX).write_text(json.dumps(index))
    for name in ("config.json", "hf_quant_config.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace("W4A16_AWQ", "W4A8_AWQ"))


SOURCES: Mapping[str, Build] = {
    "compressed-tensors W4A16": packed(W4A16),
    "… with scales that float16 lacks": wide_scales,
    "compressed-tensors W4A16_ASYM": packed(W4A16_ASYM),
    "compressed-tensors W3A16": packed(THREE),
    "compressed-tensors W8A16 by channel": packed(EIGHT),
    "compressed-tensors W8A8": packed(W8A8),
    "compressed-tensors FP8": minifloat("FP8"),
    "compressed-tensors FP8_DYNAMIC": minifloat("FP8_DYNAMIC"),
    "compressed-tensors FP8_BLOCK": minifloat("FP8_BLOCK"),
    "compressed-tensors NVFP4": minifloat("NVFP4"),
    "compressed-tensors MXFP4": minifloat("MXFP4"),
    "compressed-tensors MXFP8": minifloat("MXFP8"),
    "GPTQ 4 bits symmetric": then(packed(W4A16), "gptq"),
    "GPTQ 4 bits with zero points": then(packed(W4A16_ASYM), "gptq_v2"),
    "GPTQ by act-order": act_order,
    "GPTQ 8 bits by channel": then(packed(EIGHT), "gptq"),
    "AWQ": then(packed(W4A16_ASYM), "awq"),
    "AWQ, all zero points 8": then(packed(W4A16), "awq"),
    "ModelOpt W4A16_AWQ": then(packed(W4A16), "modelopt"),
    "ModelOpt W4A8_AWQ": rounded_before_the_product,
    "fp8 by tensor, static": then(minifloat("FP8"), "fp8"),
    "fp8 in blocks": then(minifloat("FP8_BLOCK"), "fp8"),
    "FBGEMM": fbgemm,
}


def outcome(source: Path, output: Path, target: str) -> str:
    """Whether the conversion is exact, needs scales to be rounded, or is refused."""
    try:
        convert(source, output, target)
    except ConversionError as error:
        return ROUNDED if "--allow-scale-rounding" in str(error) else REFUSED
    before, after = dict(dequantized_state(source)), dict(dequantized_state(output))
    shutil.rmtree(output)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    return EXACT


def table(model: Path, work: Path) -> str:
    """Of all sources and targets, in Markdown."""
    lines = ["| from \\ to | " + " | ".join(FORMATS) + " |", "|---" * (1 + len(FORMATS)) + "|"]
    for i, (name, build) in enumerate(SOURCES.items()):
        source = work / str(i)
        build(model, source)
        cells = [outcome(source, work / f"{i}-out", target) for target in FORMATS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def test_the_table_in_the_document_is_what_conversions_do(wide: Path, tmp_path: Path) -> None:
    assert table(wide, tmp_path) in DOCUMENT.read_text()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        tiny = save_tiny(Path(folder), "llama", hidden_size=128, head_dim=32)
        print(table(tiny, Path(folder) / "work"), end="")
