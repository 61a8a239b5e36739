"""Whether our checkpoints for TensorRT-LLM's engine builder are those that ModelOpt writes, byte for byte.

    python -m benchmarks.engine_parity

ModelOpt is given the weights of a tiny random Llama, and its codes' scales; it makes the codes again, splits
them over devices and writes them in its own environment. What differs by intent is not compared: who wrote
it, the dtype of logits, and the layers that are excluded, of which we name more.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from benchmarks.packed_llama import export_by_modelopt, same, save_llama
from benchmarks.peer import INSTALL_COMMAND, MODELOPT
from benchmarks.table import table
from qdeploy.exporters.trtllm_legacy.exporter import EngineBuilderExporter
from qdeploy.files import read_json
from qdeploy.formats.modelopt import scheme_of
from qdeploy.schemes import PRESETS, Scheme

WHOLE, SPLIT, REPEATED = (1, 1), (2, 2), (4, 1)
"""(tensor, pipeline) parallel; of the last, devices outnumber the model's two key and value heads."""

CASES: Mapping[str, tuple[Scheme | None, str, tuple[tuple[int, int], ...]]] = {
    "16 bits": (None, "h100", (WHOLE, SPLIT, REPEATED)),
    "W4A16": (Scheme("W4A16", 4, 64), "h100", (WHOLE, SPLIT, REPEATED)),
    "W4A8_AWQ": (scheme_of("W4A8_AWQ", 128), "h100", (WHOLE, SPLIT)),
    "FP8": (PRESETS["FP8"], "h100", (WHOLE, SPLIT, REPEATED)),
    # ModelOpt does not repeat heads with scales by channel.
    "FP8_DYNAMIC": (PRESETS["FP8_DYNAMIC"], "h100", (WHOLE, SPLIT)),
    "W8A8_STATIC": (PRESETS["W8A8_STATIC"], "h100", (WHOLE, SPLIT)),
    "NVFP4": (PRESETS["NVFP4"], "b200", (WHOLE, SPLIT, REPEATED)),
}
INTENDED = ("producer", "logits_dtype")


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
        model = save_llama(Path(folder), {"": scheme} if scheme else {})
        for devices, stages in splits:
            ours, theirs = (model.work / f"{whose}-{devices}-{stages}" for whose in ("ours", "theirs"))
            exporter = EngineBuilderExporter(stages)
            exporter.export(model.packed, ours, gpu=gpu, tensor_parallel=devices)
            export_by_modelopt(model, theirs, (devices, stages))
            count, wrong = _differing(ours, theirs, devices * stages)
            told = ", ".join(_differing_fields(ours, theirs))
            split = f"{devices} × {stages}"
            yield [name, split, str(count), ", ".join(wrong[:3]) or "yes", told or "yes"]


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
    # A number of theirs may have no dimension, where the builder's layers have one.
    return same(a, b if b is None or b.ndim else b.reshape(1))


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
