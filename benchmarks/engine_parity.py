"""Whether our checkpoints for TensorRT-LLM's engine builder are those that ModelOpt writes, byte for byte.

    python -m benchmarks.engine_parity

ModelOpt is given the weights of a tiny random Llama, and its codes' scales; it makes the codes again, splits
them over devices and writes them in its own environment. What differs by intent is not compared: who wrote
it, the dtype of logits, and the layers that are excluded, of which we name more.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.parity import random_layer
from benchmarks.peer import INSTALL_COMMAND, MODELOPT
from benchmarks.process import ProcessError
from benchmarks.runs import RUNNERS
from benchmarks.table import table
from qdeploy.exporters.trtllm_legacy.exporter import EngineBuilderExporter
from qdeploy.files import read_json, write_json
from qdeploy.formats.packed import FORMATS
from qdeploy.quantized import QuantizedLinear
from qdeploy.schemes import PRESETS, Scheme

RUNNER = "write_engine_checkpoint.py"
WHOLE, SPLIT, REPEATED = (1, 1), (2, 2), (4, 1)
"""(tensor, pipeline) parallel; of the last, devices outnumber the model's two key and value heads."""

CASES: Mapping[str, tuple[Scheme | None, str, tuple[tuple[int, int], ...]]] = {
    "16 bits": (None, "h100", (WHOLE, SPLIT, REPEATED)),
    "W4A16": (Scheme("W4A16", 4, 64), "h100", (WHOLE, SPLIT, REPEATED)),
    "FP8": (PRESETS["FP8"], "h100", (WHOLE, SPLIT, REPEATED)),
    # ModelOpt does not repeat heads with scales by channel.
    "FP8_DYNAMIC": (PRESETS["FP8_DYNAMIC"], "h100", (WHOLE, SPLIT)),
    "W8A8_STATIC": (PRESETS["W8A8_STATIC"], "h100", (WHOLE, SPLIT)),
    "NVFP4": (PRESETS["NVFP4"], "b200", (WHOLE, SPLIT, REPEATED)),
}
INTENDED = ("producer", "logits_dtype")
DIVISOR, INPUT_SCALE = 4096.0, 0.5
"""Powers of two, of which ModelOpt's arithmetic with largest values loses nothing."""


def main() -> None:
    """Print what is equal; the exit code is 1 if something is not."""
    if not MODELOPT.installed:
        sys.exit(f"{MODELOPT.name} is not installed. To install it: {INSTALL_COMMAND}")
    rows = [row for name in CASES for row in _compared(name)]
    print(table(["scheme", "devices × stages", "tensors compared", "tensors equal", "config equal"], rows))
    sys.exit(any(row[-1] != "yes" or row[-2] != "yes" for row in rows))


def _compared(name: str) -> Iterator[list[str]]:
    scheme, gpu, splits = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        layers = _save_models(scheme, work)
        for devices, stages in splits:
            ours, theirs = work / f"ours-{devices}-{stages}", work / f"theirs-{devices}-{stages}"
            exporter = EngineBuilderExporter(stages)
            exporter.export(work / "packed", ours, gpu=gpu, tensor_parallel=devices)
            _write_theirs(scheme, layers, work, theirs, devices, stages)
            count, wrong = _differing(ours, theirs, devices * stages)
            told = ", ".join(_differing_fields(ours, theirs))
            split = f"{devices} × {stages}"
            yield [name, split, str(count), ", ".join(wrong[:3]) or "yes", told or "yes"]


def _save_models(scheme: Scheme | None, work: Path) -> dict[str, QuantizedLinear]:
    """A random Llama in `work`/packed, and in `work`/dense the float32 weights that it stands for."""
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
    projections = [name for name in shapes if name.endswith("_proj")]
    layers = {name: _layer(scheme, *shapes[name]) for name in projections} if scheme else {}
    kept = {name: tensor for name, tensor in state.items() if name.removesuffix(".weight") not in layers}
    _save(config, work / "dense", kept | {f"{name}.weight": q.dequantize() for name, q in layers.items()})
    if scheme is not None:
        written = FORMATS["compressed-tensors"]
        packed = {
            f"{name}.{suffix}": t for name, q in layers.items() for suffix, t in written.pack(name, q).items()
        }
        config.quantization_config = written.config(dict.fromkeys(layers, scheme), ["lm_head"], None).block
        _save(config, work / "packed", kept | packed)
    return layers


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
    if scheme.steps == "e4m3":
        # With a largest code in each block, ModelOpt finds the block's scale again.
        q.codes[:, :: scheme.group_size] = 7
        q = replace(q, divisor=torch.tensor(DIVISOR))
    return replace(q, input_scale=torch.tensor(INPUT_SCALE)) if scheme.needs_data else q


def _write_theirs(
    scheme: Scheme | None,
    layers: Mapping[str, QuantizedLinear],
    work: Path,
    output: Path,
    devices: int,
    stages: int,
) -> None:
    scales = {f"{name}.scales": q.scales.float().contiguous() for name, q in layers.items()}
    save_file(scales or {"none": torch.zeros(1)}, work / "scales.safetensors")
    job = {
        "model": str(work / "dense"),
        "scales": str(work / "scales.safetensors"),
        "scheme": scheme.name if scheme else None,
        "group_size": scheme.group_size if scheme else None,
        "divisor": DIVISOR,
        "input_scale": INPUT_SCALE,
        "output": str(output),
        "tensor_parallel": devices,
        "pipeline_parallel": stages,
    }
    write_json(work / "job.json", job)
    log = work / "log.txt"
    with log.open("w") as stream:
        command = [str(MODELOPT.python), str(RUNNERS / RUNNER), str(work / "job.json")]
        done = subprocess.run(command, cwd=work, stdout=stream, stderr=stream, check=False)
    if done.returncode:
        raise ProcessError(f"{RUNNER} failed:\n{log.read_text()[-2000:]}")


def _differing(ours: Path, theirs: Path, ranks: int) -> tuple[int, list[str]]:
    """How many tensors there are, and which are not the same or in one checkpoint alone."""
    count, wrong = 0, []
    for rank in range(ranks):
        a, b = (load_file(folder / f"rank{rank}.safetensors") for folder in (ours, theirs))
        count += len(a)
        wrong += [
            f"{rank}:{name}" for name in sorted(a.keys() | b.keys()) if not _same(a.get(name), b.get(name))
        ]
    return count, wrong


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None or a.dtype != b.dtype:
        return False
    # A number of theirs may have no dimension, where the builder's layers have one.
    b = b.reshape(1) if b.ndim == 0 else b
    return a.shape == b.shape and torch.equal(
        a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)
    )


def _differing_fields(ours: Path, theirs: Path) -> Iterator[str]:
    """Fields of config.json that both have and that say another thing."""
    a, b = (_fields(read_json(folder / "config.json")) for folder in (ours, theirs))
    for name in a.keys() & b.keys():
        if name not in INTENDED and a[name] != b[name]:
            yield f"{name}: {json.dumps(a[name])}, {json.dumps(b[name])}"


def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
    quantization = {
        name: value for name, value in config["quantization"].items() if name != "exclude_modules"
    }
    return {**config, "quantization": quantization}


if __name__ == "__main__":
    main()
