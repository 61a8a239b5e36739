"""Whether our packing is that of the tools whose formats we write, byte for byte.

    python -m benchmarks.parity

Each tool packs, in its own environment, the weights that random codes, scales and zero points stand for; what
it makes is compared with what we make of the codes. ModelOpt's whole folders are in `folder_parity`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.peer import GPTQMODEL, INSTALL_COMMAND, LLM_COMPRESSOR, Peer
from benchmarks.process import ProcessError
from benchmarks.runs import RUNNERS
from benchmarks.table import table
from qdeploy.files import write_json
from qdeploy.formats.ct_config import quantization_config
from qdeploy.formats.packed import FORMATS
from qdeploy.quantized import QuantizedLinear, portable_scales
from qdeploy.schemes import PRESETS, Scheme

N, K, GROUP = 128, 256, 64
INTEGERS = (
    *(Scheme("", bits, GROUP, symmetric) for bits in (2, 3, 4, 8) for symmetric in (True, False)),
    Scheme("", 4, None),
    Scheme("", 8, None),
)
FLOATS = ("FP8_DYNAMIC", "FP8", "FP8_BLOCK", "FP8A16", "NVFP4A16", "NVFP4", "MXFP4", "MXFP8")


@dataclass(frozen=True)
class Packer:
    """A tool, the format that it writes, what it is tried on, and the tensors that are compared."""

    peer: Peer
    runner: str
    format: str
    schemes: tuple[Scheme, ...]
    compared: tuple[str, ...]


GPTQ = ("qweight", "qzeros", "scales", "g_idx")
PACKERS = (
    Packer(
        LLM_COMPRESSOR,
        "pack_compressed_tensors.py",
        "compressed-tensors",
        (*INTEGERS, *(PRESETS[name] for name in ("W8A8", "W8A8_STATIC", "W4A8", *FLOATS))),
        (
            "weight",
            "weight_packed",
            "weight_scale",
            "weight_zero_point",
            "weight_shape",
            "weight_global_scale",
        ),
    ),
    Packer(GPTQMODEL, "pack_gptqmodel.py", "gptq", INTEGERS, GPTQ),
    Packer(GPTQMODEL, "pack_gptqmodel.py", "gptq_v2", INTEGERS, GPTQ),
)


def main() -> None:
    """Print what is equal; the exit code is 1 if something is not."""
    rows = [row for packer in PACKERS for row in _compared(packer)]
    print(table(["tool", "format", "layer", "tensors compared", "equal"], rows))
    sys.exit(any(row[-1] != "yes" for row in rows))


def _compared(packer: Packer) -> Iterator[list[str]]:
    if not packer.peer.installed:
        print(f"{packer.peer.name}: skipped, it is not installed. To install it: {INSTALL_COMMAND}")
        return
    layers = {f"{i}": random_layer(scheme, i) for i, scheme in enumerate(packer.schemes)}
    theirs = _packed_by(packer, layers)
    for key, q in layers.items():
        ours = FORMATS[packer.format].pack("mlp.up_proj", FORMATS[packer.format].nearest(q))
        names = [name for name in packer.compared if name in ours]
        wrong = [name for name in names if not _equal(ours[name], theirs.get(f"{key}.{name}"))]
        told = "no: " + ", ".join(wrong) if wrong else "yes"
        yield [packer.peer.name, packer.format, _told(q.scheme), ", ".join(names), told]


def _told(scheme: Scheme) -> str:
    if scheme.name:
        return scheme.describe()
    size = "per channel" if scheme.group_size is None else f"group {scheme.group_size}"
    return f"{scheme.bits} bits, {'symmetric' if scheme.symmetric else 'with zero points'}, {size}"


def random_layer(scheme: Scheme, seed: int, n: int = N, k: int = K) -> QuantizedLinear:
    """Codes, scales and zero points that the tools' packers make again of the weights they stand for."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**scheme.bits, (n, k), generator=generator).to(torch.uint8)
    if scheme.element is not None:
        codes[codes & 127 == 127] = 0  # E4M3's NaN
        codes[(codes == 8) & (scheme.bits == 4)] = 0  # −0, which these tools make of no weight
    if scheme.activations is not None and scheme.element is None:
        codes = codes.clamp_min(1)  # −127 … 127, as absmax scales leave them
    shape = (n, scheme.groups(k))
    scales = portable_scales(torch.rand(shape, generator=generator) + 0.5)
    if scheme.rows != 1:
        rows = scheme.rows or n
        scales = scales[::rows].repeat_interleave(rows, 0)[:n]
    divisor = None
    if scheme.steps == "e8m0":
        scales = scales.log2().floor().exp2()
    if scheme.steps == "e4m3":
        scales, divisor = scales.to(torch.float8_e4m3fn).bfloat16(), torch.tensor(2.0)
    # From 1 on, which both versions of GPTQ's format hold.
    zeros = torch.randint(1, 2**scheme.bits, shape, generator=generator).to(torch.uint8)
    return QuantizedLinear(codes, scales, None if scheme.symmetric else zeros, scheme, divisor)


def _packed_by(packer: Packer, layers: dict[str, QuantizedLinear]) -> dict[str, Tensor]:
    """What the tool makes of the same layers: "key.suffix" → tensor."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tensors: dict[str, Tensor] = {}
        cases: list[dict[str, object]] = []
        for key, q in layers.items():
            zeros = q.zeros if q.zeros is not None else torch.full(q.scales.shape, q.scheme.zero)
            stored = q.scales[0] if q.scheme.rows is None else q.scales[:: q.scheme.rows]
            tensors |= {
                f"{key}.weight": q.dequantize(),
                f"{key}.scales": q.scales.float(),
                f"{key}.stored": stored.float().contiguous(),
                f"{key}.zeros": zeros.to(torch.uint8),
            }
            if q.divisor is not None:
                tensors[f"{key}.divisor"] = q.divisor.reshape(1)
            cases.append({"key": key, "format": packer.format, **_case(q.scheme)})
        save_file(tensors, folder / "in.safetensors")
        job = {"input": "in.safetensors", "output": "out.safetensors", "cases": cases}
        write_json(folder / "job.json", job)
        command = [str(packer.peer.python), str(RUNNERS / packer.runner), "job.json"]
        log = folder / "log.txt"
        with log.open("w") as stream:
            done = subprocess.run(command, cwd=folder, stdout=stream, stderr=stream, check=False)
        if done.returncode:
            raise ProcessError(f"{packer.runner} failed:\n{log.read_text()[-2000:]}")
        return load_file(folder / "out.safetensors")


def _case(scheme: Scheme) -> dict[str, object]:
    return {
        "bits": scheme.bits,
        "symmetric": scheme.symmetric,
        "group_size": scheme.group_size,
        "group": quantization_config({"": scheme}, [])["config_groups"]["group_0"],
    }


def _equal(ours: Tensor, theirs: Tensor | None) -> bool:
    if theirs is None or ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    return torch.equal(ours.contiguous().view(torch.uint8), theirs.contiguous().view(torch.uint8))


if __name__ == "__main__":
    main()
