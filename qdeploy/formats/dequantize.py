"""What a packed checkpoint computes, in plain floating point: the reference for the engines that serve it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdeploy.errors import CheckpointError
from qdeploy.formats.packed import Packed
from qdeploy.kv_cache import is_cache_scale, round_cache, stored_scales
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.modeling.experts import split_experts
from qdeploy.rounded_inputs import round_inputs


def dequantized_state(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Parameters of the model in `folder` under the names that it has in 16 bits.

    Quantized weights come as float32, exactly what their codes say; everything else as it is stored.

    Raises:
        CheckpointError: the folder is broken, or quantized in a way that cannot be read.
    """
    reader = CheckpointReader(folder)
    packed = Packed(reader)
    for module in packed.schemes:
        yield f"{module}.weight", packed.read(module).dequantize()
    owned = packed.tensors
    for name in reader.names:
        if name not in owned and not is_cache_scale(name):
            yield name, reader.get(name)


def dequantized_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A transformers causal language model with the mathematics of the checkpoint in `folder`.

    Weights are dequantized; inputs are rounded where their layers' scheme says so, as engines do, and so are
    keys and values if the checkpoint has them cached in FP8. 16-bit folders load as they are. Needs memory
    for the whole model in `dtype`.

    Raises:
        CheckpointError: the folder is broken, or quantized in a way that cannot be read.
    """
    reader = CheckpointReader(folder)
    model = _load(folder, dict(dequantized_state(folder)), dtype)
    split_experts(model)  # so that every quantized layer is a module of that name
    packed = Packed(reader)
    round_inputs(model, packed.schemes, input_scales(packed))
    round_cache(model, stored_scales(reader))
    return model.eval()


def input_scales(packed: Packed) -> dict[str, Tensor]:
    """Module → the static scale of its inputs, float32 [], where its scheme has one."""
    found = {
        name: packed.read(name).input_scale for name, scheme in packed.schemes.items() if scheme.needs_data
    }
    return {name: scale for name, scale in found.items() if scale is not None}


def _load(folder: Path, state: dict[str, Tensor], dtype: torch.dtype) -> Any:
    """The model of the folder's config with the weights of `state`, all of them and no others."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        architecture = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"transformers cannot build the model of {folder}: {error}") from error
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model, report = architecture.from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:
            # transformers fills what is missing with random numbers.
            raise CheckpointError(
                f"{folder} does not fit its config.json: {problem} {sorted(report[problem])}"
            )
    return model
