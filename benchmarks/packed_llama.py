"""A tiny random Llama, packed by us, and dense for ModelOpt, which finds its codes again and exports it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.parity import random_layer
from benchmarks.peer import MODELOPT
from benchmarks.process import ProcessError
from benchmarks.runs import RUNNERS
from qdeploy.files import write_json
from qdeploy.formats.packed import FORMATS
from qdeploy.kv_cache import KEY, VALUE
from qdeploy.quantized import QuantizedLinear
from qdeploy.schemes import Scheme

RUNNER = "write_modelopt.py"
DIVISOR, INPUT_SCALE, CACHE_SCALE = 4096.0, 0.5, 0.25
"""Powers of two, of which ModelOpt's arithmetic with largest values loses nothing."""

Parts = Mapping[str, Scheme]
"""What the name of a layer contains → its scheme; the first that fits."""


@dataclass(frozen=True)
class PackedLlama:
    """The model in a folder of its own.

    Attributes:
        work: has `packed`, in compressed-tensors, or where only that holds it in ModelOpt's format, and
            `dense`, the float32 weights that it stands for.
        parts: of its layers.
        layers: module → what was packed.
        cache: whether it has scales for its cache.
    """

    work: Path
    parts: Parts
    layers: Mapping[str, QuantizedLinear]
    cache: bool

    @property
    def packed(self) -> Path:
        return self.work / "packed"


def save_llama(work: Path, parts: Parts, *, cache: bool = False) -> PackedLlama:
    """Make both folders; a model without parts stays in 16 bits."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(work / "packed")
    state = load_file(work / "packed" / "model.safetensors")
    shapes = {name.removesuffix(".weight"): tensor.shape for name, tensor in state.items()}
    projections = [name for name in shapes if name.endswith("_proj")] if parts else []
    layers = {name: _layer(_scheme(parts, name), *shapes[name]) for name in projections}
    kept = {name: tensor for name, tensor in state.items() if name.removesuffix(".weight") not in layers}
    _save(config, work / "dense", kept | {f"{name}.weight": _dense(q) for name, q in layers.items()})
    if parts:
        _save_packed(config, work / "packed", kept, layers, cache=cache)
    return PackedLlama(work, parts, layers, cache)


def _scheme(parts: Parts, name: str) -> Scheme:
    return next(scheme for within, scheme in parts.items() if within in name)


def _save_packed(
    config: LlamaConfig,
    folder: Path,
    kept: Mapping[str, Tensor],
    layers: Mapping[str, QuantizedLinear],
    *,
    cache: bool,
) -> None:
    foreign = any(q.scheme.product for q in layers.values())
    written = FORMATS["modelopt" if foreign else "compressed-tensors"]
    packed: dict[str, Tensor] = {}
    for name, q in layers.items():
        packed |= {f"{name}.{suffix}": tensor for suffix, tensor in written.pack(name, q).items()}
        if cache and name.endswith(".k_proj"):
            attention = name.removesuffix(".k_proj")
            packed |= {f"{attention}.{scale}": torch.tensor([CACHE_SCALE]) for scale in (KEY, VALUE)}
    schemes = {name: q.scheme for name, q in layers.items()}
    config.quantization_config = written.config(schemes, ["lm_head"], "fp8" if cache else None).block
    _save(config, folder, {**kept, **packed})


def _dense(q: QuantizedLinear) -> Tensor:
    """What codes stand for, before the product rounds it."""
    return (replace(q, divisor=None) if q.scheme.product else q).dequantize()


def _save(config: LlamaConfig, folder: Path, state: Mapping[str, Tensor]) -> None:
    folder.mkdir(exist_ok=True)
    config.architectures, config.dtype = ["LlamaForCausalLM"], torch.bfloat16
    config.save_pretrained(folder)
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _layer(scheme: Scheme, n: int, k: int) -> QuantizedLinear:
    """Of what a whole layer has one there is one for the model."""
    q = random_layer(scheme, n + k, n, k)
    if scheme.rows is None:
        q = replace(q, scales=torch.full_like(q.scales, 0.75))
    if scheme.steps != "bfloat16":
        # With a largest code in each block, ModelOpt finds the block's scale again.
        q.codes[:, :: scheme.group_size] = 7 if scheme.bits == 4 else 126
    if scheme.steps == "e8m0" and scheme.bits == 4:
        q.codes[q.codes == 0] = 8  # of every zero in MXFP4 it makes −0
    if scheme.has_divisor:
        q = replace(q, divisor=torch.tensor(DIVISOR))
    return replace(q, input_scale=torch.tensor(INPUT_SCALE)) if scheme.needs_data else q


def export_by_modelopt(model: PackedLlama, output: Path, split: tuple[int, int] | None = None) -> None:
    """What ModelOpt makes of the dense model.

    Args:
        split: tensor and pipeline parallel, for TensorRT-LLM's engine builder; None for a folder.

    Raises:
        ProcessError: ModelOpt failed; the message holds the end of its log.
    """
    work = model.work
    scales = {f"{name}.scales": q.scales.float().contiguous() for name, q in model.layers.items()}
    save_file(scales or {"none": torch.zeros(1)}, work / "scales.safetensors")
    parts = [
        {"within": within, "scheme": scheme.name, "group_size": scheme.group_size}
        for within, scheme in model.parts.items()
    ]
    job = {
        "model": str(work / "dense"),
        "scales": str(work / "scales.safetensors"),
        "parts": parts,
        "divisor": DIVISOR,
        "input_scale": INPUT_SCALE,
        "cache_scale": CACHE_SCALE if model.cache else None,
        "output": str(output),
        "split": split,
    }
    write_json(work / "job.json", job)
    log = work / "log.txt"
    with log.open("w") as stream:
        command = [str(MODELOPT.python), str(RUNNERS / RUNNER), str(work / "job.json")]
        done = subprocess.run(command, cwd=work, stdout=stream, stderr=stream, check=False)
    if done.returncode:
        raise ProcessError(f"{RUNNER} failed:\n{log.read_text()[-2000:]}")


def same(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether both are there and hold the same bytes in the same dtype and shape."""
    if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))
