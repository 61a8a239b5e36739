"""Whether our folders in ModelOpt's format are those that ModelOpt writes, tensors and configs.

    python -m benchmarks.folder_parity

ModelOpt is given the weights of a tiny random Llama, and its codes' scales; it makes the codes again and
exports them by `export_hf_checkpoint`, in its own environment. Ours is `qdeploy convert --to modelopt` of the
codes. Of the configs all is compared that ModelOpt's say but who wrote them, the numbers of groups, and that
the embedding is excluded, which nothing would quantize. Ours say more: in config.json the size of groups, and
of mixed folders which layers are excluded.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmarks.packed_llama import Parts, export_by_modelopt, same, save_llama
from benchmarks.peer import INSTALL_COMMAND, MODELOPT
from benchmarks.table import table
from qdeploy.conversion import convert
from qdeploy.files import read_json
from qdeploy.formats.modelopt import algorithm, scheme_of
from qdeploy.formats.modelopt_config import FILE, MIXED
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.schemes import PRESETS, Scheme

EMBEDDING = "model.embed_tokens"
INT4, INT4_FP8, FP8 = Scheme("W4A16", 4, 64), scheme_of("W4A8_AWQ", 64), PRESETS["FP8"]
CASES: tuple[tuple[Parts, bool], ...] = (
    *(
        ({"": scheme}, False)
        for scheme in (INT4, INT4_FP8, Scheme("W8A16", 8, None), PRESETS["W8A8_STATIC"], FP8)
    ),
    *(({"": PRESETS[name]}, False) for name in ("FP8_DYNAMIC", "FP8_BLOCK", "NVFP4", "NVFP4A16")),
    *(({"": PRESETS[name]}, False) for name in ("MXFP8", "MXFP4")),
    ({"self_attn": FP8, "mlp": INT4}, False),
    ({"self_attn": FP8, "mlp": INT4_FP8}, False),
    ({"self_attn": FP8, "mlp": PRESETS["NVFP4"]}, True),
)
"""Schemes of layers, and whether the cache is in FP8."""


def main() -> None:
    """Print what is equal; the exit code is 1 if something is not."""
    if not MODELOPT.installed:
        sys.exit(f"{MODELOPT.name} is not installed. To install it: {INSTALL_COMMAND}")
    rows = [_compared(parts, cache) for parts, cache in CASES]
    print(table(["algorithm", "cache", "tensors compared", "tensors equal", "configs equal"], rows))
    sys.exit(any(row[-1] != "yes" or row[-2] != "yes" for row in rows))


def _compared(parts: Parts, cache: bool) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        model = save_llama(Path(folder), parts, cache=cache)
        ours, theirs = model.work / "ours", model.work / "theirs"
        convert(model.packed, ours, "modelopt")
        export_by_modelopt(model, theirs)
        a, b = _tensors(ours), load_file(theirs / "model.safetensors")
        wrong = [name for name in sorted(a.keys() | b.keys()) if not same(a.get(name), b.get(name))]
        told = "; ".join(_differing_fields(ours, theirs))
    names = [str(algorithm(scheme)) for scheme in parts.values()]
    name = names[0] if len(names) == 1 else f"{MIXED} of {' and '.join(names)}"
    return [name, "FP8" if cache else "–", str(len(a)), ", ".join(wrong[:4]) or "yes", told or "yes"]


def _tensors(folder: Path) -> dict[str, Any]:
    reader = CheckpointReader(folder)
    return {name: reader.get(name) for name in reader.names}


def _differing_fields(ours: Path, theirs: Path) -> Iterator[str]:
    """Fields that say another thing than theirs."""
    for file, key in ((FILE, "quantization"), ("config.json", "quantization_config")):
        a, b = (read_json(folder / file)[key] for folder in (ours, theirs))
        for name, value in b.items():
            if name != "producer" and not _agree(name, a.get(name), value):
                yield f"{file} {name}: {json.dumps(a.get(name))}, {json.dumps(value)}"


def _agree(name: str, ours: Any, theirs: Any) -> bool:
    if name in ("exclude_modules", "ignore"):
        return {*(theirs or ())} - {EMBEDDING} <= {*(ours or ())}
    if name == "config_groups" and ours:
        return _unnumbered(ours) == _unnumbered(theirs)
    return bool(ours == theirs)


def _unnumbered(groups: Mapping[str, Any]) -> list[str]:
    return sorted(json.dumps(group, sort_keys=True) for group in groups.values())


if __name__ == "__main__":
    main()
