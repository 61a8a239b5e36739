"""A vLLM plugin: 4-bit weights on processors without AVX-512, by PyTorch's own int4 kernel.

The CPU build of vLLM 0.32 compiles its 4-bit kernel (`cpu_gemm_wna16`) for AVX-512 alone. On other
processors it picks that kernel all the same and dies at the first request (vllm-project/vllm issue 55613).
PyTorch has an int4 weight-only matrix product that is vectorized for AVX2 too,
`_weight_int4pack_mm_for_cpu`; this plugin puts it first where vLLM's is missing, and does nothing elsewhere.

`qdeploy.engines.vllm` adds this folder to PYTHONPATH. vLLM finds the plugin through the entry point in the
`.dist-info` folder beside this file, in every process it starts. The module runs inside the engine's
environment and so imports nothing of qdeploy.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from vllm.model_executor.kernels import linear
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import (
    MPLinearKernel,
    MPLinearLayerConfig,
)
from vllm.model_executor.layers.quantization.utils.quant_utils import unpack_quantized_values_into_int32
from vllm.platforms import current_platform
from vllm.platforms.interface import PlatformEnum
from vllm.scalar_type import scalar_types

GROUP_SIZES = (256, 128, 64, 32)
"""What the kernel takes; one scale per channel is repeated for the largest of these that divides K."""


class TorchInt4LinearKernel(MPLinearKernel):  # type: ignore[misc]
    """W4A16 by `aten::_weight_int4pack_mm_for_cpu`: bfloat16 activations, products summed in float32."""

    @classmethod
    def get_min_capability(cls) -> int:
        """No CUDA capability is asked for."""
        return -1

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        """Whether the kernel takes the layer, and if not, why."""
        k, n = c.partition_weight_shape
        if c.weight_type not in (scalar_types.uint4, scalar_types.uint4b8):
            return False, f"TorchInt4 takes 4-bit weights, not {c.weight_type}"
        if c.act_type != torch.bfloat16:
            return False, f"TorchInt4 takes bfloat16 activations, not {c.act_type}; use --dtype bfloat16"
        if n % 16:
            return False, f"TorchInt4 needs N to be a multiple of 16, and it is {n}"
        if not _group_sizes(c.group_size, k):
            return False, f"TorchInt4 takes groups of {GROUP_SIZES}, not {c.group_size} with K = {k}"
        return True, None

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Bring the layer's tensors into the kernel's layout."""
        codes, scales, zeros = self._unpacked(layer)
        group = _group_sizes(self.config.group_size, codes.shape[1])[0]
        repeats = codes.shape[1] // group // scales.shape[1]
        # The kernel computes (q − 8)·scale + offset.
        offsets = torch.zeros_like(scales) if zeros is None else (8 - zeros) * scales
        pairs = torch.stack([scales, offsets.to(scales.dtype)], dim=-1).repeat_interleave(repeats, dim=1)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        setattr(layer, self.w_q_name, nn.Parameter(packed, requires_grad=False))
        setattr(layer, self.w_s_name, nn.Parameter(pairs.transpose(0, 1).contiguous(), requires_grad=False))
        self.group_size = group

    def apply_weights(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """y = x·Wᵀ + bias for x [..., K]."""
        packed, pairs, _ = self._get_weight_params(layer)
        rows = x.reshape(-1, x.shape[-1])
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, packed, self.group_size, pairs)
        y = y.reshape(*x.shape[:-1], y.shape[-1])
        return y if bias is None else y + bias

    def _unpacked(self, layer: nn.Module) -> tuple[Tensor, Tensor, Tensor | None]:
        """Codes int32 [N, K], scales [N, G], zero points int32 [N, G], from any of vLLM's layouts."""
        weight, scales, zeros = self._get_weight_params(layer)
        codes = unpack_quantized_values_into_int32(weight.data, self.config.weight_type, weight.packed_dim)
        codes = codes if weight.output_dim == 0 else codes.t()
        by_row = scales.data if scales.output_dim == 0 else scales.data.t()
        if not self.config.zero_points:
            return codes.contiguous(), by_row, None
        points = unpack_quantized_values_into_int32(zeros.data, self.config.weight_type, zeros.packed_dim)
        return codes.contiguous(), by_row, points if zeros.output_dim == 0 else points.t()


def _group_sizes(asked: int, k: int) -> list[int]:
    """The kernel's group sizes that can stand for `asked` (−1: one scale per channel), largest first."""
    return [size for size in GROUP_SIZES if k % size == 0 and asked in (-1, size)]


def register() -> None:
    """Put the kernel first where vLLM's own is not compiled in. vLLM calls this once in every process."""
    if not current_platform.is_cpu() or hasattr(torch.ops._C, "cpu_gemm_wna16"):
        return
    kernels = linear._POSSIBLE_KERNELS[PlatformEnum.CPU]
    if TorchInt4LinearKernel not in kernels:
        kernels.insert(0, TorchInt4LinearKernel)
