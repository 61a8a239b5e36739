"""Random quantized layers, and a tiny model packed from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qdeploy.checkpoint.writer import ShardWriter
from qdeploy.formats import compressed_tensors
from qdeploy.methods.grid import fit
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.quantized import QuantizedLinear, portable_scales
from qdeploy.rounded_inputs import static_scale
from qdeploy.schemes import Scheme


def random_linear(scheme: Scheme, n: int = 64, k: int = 128) -> QuantizedLinear:
    if scheme.element is not None:
        q = fit(torch.randn(n, k) * 0.1, scheme).nearest(torch.randn(n, k) * 0.1)
    else:
        codes = torch.randint(0, scheme.qmax + 1, (n, k), dtype=torch.uint8)
        shape = (n, scheme.groups(k))
        scales = portable_scales(torch.rand(shape) * 0.5 / scheme.qmax)
        zeros = None if scheme.symmetric else torch.randint(0, scheme.qmax + 1, shape, dtype=torch.uint8)
        q = QuantizedLinear(codes, scales, zeros, scheme)
    if scheme.activations is None or scheme.activations.dynamic:
        return q
    if scheme.product is not None:
        q = replace(q, divisor=torch.tensor(512.0))
    return replace(q, input_scale=static_scale(torch.tensor(3.0), scheme.activations))


@pytest.fixture
def packed_llama(tiny_model: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """(module → scheme) → folder of the tiny Llama, its linear layers replaced by random packed ones."""

    def make(scheme_of: Callable[[str], Scheme]) -> Path:
        source, output = CheckpointReader(tiny_model("llama")), tmp_path / "packed"
        schemes, tensors = {}, {}
        for name in source.names:
            module, _, suffix = name.rpartition(".")
            if suffix == "weight" and module.endswith("_proj"):
                schemes[module] = scheme_of(module)
                packed = compressed_tensors.pack(random_linear(schemes[module], *source.shape(name)))
                tensors |= {f"{module}.{suffix}": tensor for suffix, tensor in packed.items()}
            else:
                tensors[name] = source.get(name)
        block = compressed_tensors.quantization_config(schemes, ["lm_head"])
        with ShardWriter(output, ["all"]) as writer:
            writer.add_shard("all", tensors)
            writer.finish(source.config | {"quantization_config": block}, {}, source.folder)
        return output

    return make
