"""The tensors of one quantized linear layer, as the engine builder reads them, and parts of layers.

By algorithm, for a device's part of N × K; the builder, not the checkpoint, puts weights into a GPU's order:

    W4A16_AWQ                   weight int8 [N/2, K], as ModelOpt packs it; weights_scaling_factor [N, G];
                                prequant_scaling_factor [K] of ones
    W4A8_AWQ                    the same; weights_scaling_factor_2 [1]; activation_scaling_factor [1]
    W8A8_SQ_PER_CHANNEL         weight int8 [N, K]; weights_scaling_factor [N]; activation_scaling_factor [1];
                                prequant_scaling_factor [K] of ones
    FP8                         weight E4M3 [N, K]; weights_scaling_factor [1]; activation_scaling_factor [1]
    FP8_PER_CHANNEL_PER_TOKEN   weight E4M3 [N, K]; per_channel_scale [N]
    NVFP4                       weight uint8 [N, K/2]; weights_scaling_factor E4M3 [N, K/16];
                                weights_scaling_factor_2 [1], activation_scaling_factor [1]

Ones are in the model's dtype, other scales in float32.

Sources: TensorRT-LLM, `quantization/layers.py` and `models/modeling_utils.py` (preprocess_perlayer_weights);
ModelOpt 0.47, `torch/export/postprocess.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from qdeploy.exporters.trtllm_legacy.algorithms import SMOOTH, algorithm
from qdeploy.formats import modelopt
from qdeploy.quantized import QuantizedLinear

NAMES = {
    "weight_scale": "weights_scaling_factor",
    "weight_scale_2": "weights_scaling_factor_2",
    "input_scale": "activation_scaling_factor",
}
"""ModelOpt's suffix in Hugging Face folders → the builder's."""


def rows(q: QuantizedLinear, part: slice) -> QuantizedLinear:
    """Some output channels of a symmetric layer."""
    return replace(q, stored=q.codes[part], scales=q.scales[part])


def columns(q: QuantizedLinear, part: slice) -> QuantizedLinear:
    """Some inputs of a symmetric layer, in whole groups."""
    size = q.scheme.group_size
    groups = slice(None) if size is None else slice(part.start // size, part.stop // size)
    return replace(q, stored=q.codes[:, part], scales=q.scales[:, groups])


def stack(layers: Sequence[QuantizedLinear]) -> QuantizedLinear:
    """Layers of one scheme as one, below each other; what they share is that of the first."""
    codes, scales = torch.cat([q.codes for q in layers]), torch.cat([q.scales for q in layers])
    return replace(layers[0], stored=codes, scales=scales)


def loss(q: QuantizedLinear, dtype: torch.dtype) -> str | None:
    """Which of a layer's scales the builder would round, or be given rounded; None if none.

    Args:
        dtype: of the model.
    """
    if algorithm(q.scheme) == modelopt.INT4:
        # The builder's layers have scales in the model's dtype.
        return _changed(q.scales, q.scales.to(dtype), f"exact in {str(dtype).removeprefix('torch.')}")
    near = modelopt.nearest(q)
    return _changed(q.divisor, near.divisor, "1 over a float32") or _changed(
        q.input_scale, near.input_scale, "1 over a float32"
    )


def _changed(before: Tensor | None, after: Tensor | None, wanted: str) -> str | None:
    if before is None or after is None:
        return None
    before, after = before.float().flatten(), after.float().flatten()
    wrong = before != after
    if not wrong.any():
        return None
    first = float(before[wrong][0])
    return f"{int(wrong.sum())} of {len(before)} scales are not {wanted}, the first {first:.9g}"


def pack(q: QuantizedLinear, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors that stand for `q`, by the suffix that follows the layer's name.

    Args:
        dtype: of the model.

    Raises:
        ValueError: ModelOpt's format cannot hold it.
    """
    name = algorithm(q.scheme)
    packed = _smooth(q) if name == SMOOTH else modelopt.pack("", q)
    found = {NAMES.get(suffix, suffix): tensor for suffix, tensor in packed.items()}
    found = {suffix: tensor.reshape(1) if tensor.ndim == 0 else tensor for suffix, tensor in found.items()}
    if name in modelopt.PAIRED:
        found["weight"] = found["weight"].view(torch.int8)
    if name in (*modelopt.PAIRED, SMOOTH):
        found["prequant_scaling_factor"] = torch.ones(q.shape[1], dtype=dtype)
    if name == modelopt.FLOATS["FP8_DYNAMIC"]:
        found["per_channel_scale"] = found.pop("weights_scaling_factor")
    return {suffix: tensor.contiguous() for suffix, tensor in found.items()}


def _smooth(q: QuantizedLinear) -> dict[str, Tensor]:
    """INT8 with one scale for a layer's inputs, which `formats.modelopt` does not pack."""
    assert q.input_scale is not None
    codes = (q.codes.short() - q.scheme.zero).to(torch.int8)
    return {"weight": codes, "weight_scale": q.scales[:, 0].float(), "input_scale": q.input_scale.float()}
