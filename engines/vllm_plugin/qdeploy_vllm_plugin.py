"""A vLLM plugin: 4-bit weights on processors without AVX-512, by PyTorch's own int4 kernel.

The CPU build of vLLM 0.32 compiles its 4-bit kernel (`cpu_gemm_wna16`) for AVX-512 alone. On other
processors it picks that kernel all the same and dies at the first request (vllm-project/vllm issue 55613).
PyTorch has an int4 weight-only matrix product that is vectorized for AVX2 too,
`aten::_weight_int4pack_mm_for_cpu`; this plugin puts it first where vLLM's is missing, and does nothing
elsewhere.

That product is the fastest for the few rows of decoding. For the many rows of a prompt these processors are
faster with the weight decoded to float32, exactly, for the moment of one product. Each form has a layout of
its own, so a weight takes 8 bits here instead of 4, half of its 16-bit form.

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
"""What the product takes; one scale per channel is repeated for the largest of these that divides K."""

FEW_ROWS = 32
"""Up to here the int4 product is faster: for [1536, 576] on one EPYC core 3.3 ms; decoding alone takes 2."""


class TorchInt4LinearKernel(MPLinearKernel):  # type: ignore[misc]
    """W4A16 with float32 or bfloat16 activations; sums are float32 in both."""

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
        if n % 16:
            return False, f"TorchInt4 needs N to be a multiple of 16, and it is {n}"
        if not _group_sizes(c.group_size, k):
            return False, f"TorchInt4 takes groups of {GROUP_SIZES}, not {c.group_size} with K = {k}"
        return True, None

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Bring the layer's tensors into the two layouts."""
        codes, scales, zeros = self._unpacked(layer)
        k = codes.shape[1]
        self.group_size = _group_sizes(self.config.group_size, k)[0]
        repeats = k // self.group_size // scales.shape[1]
        self.scales = scales.float().repeat_interleave(repeats, dim=1).unsqueeze(-1)
        centre = torch.full_like(scales, 8) if zeros is None else zeros.float()
        # Both products compute q·scale + offset, the int4 one with q − 8.
        self.offsets = -centre.float().repeat_interleave(repeats, dim=1).unsqueeze(-1) * self.scales
        pairs = torch.cat([self.scales, self.offsets + 8 * self.scales], dim=-1).bfloat16()
        self.pairs = pairs.transpose(0, 1).contiguous()
        self.nibbles = (codes[:, : k // 2] | codes[:, k // 2 :] << 4).to(torch.uint8)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        setattr(layer, self.w_q_name, nn.Parameter(packed, requires_grad=False))

    def apply_weights(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """y = x·Wᵀ + bias for x [..., K]."""
        rows = x.reshape(-1, x.shape[-1])
        y: Tensor
        if len(rows) <= FEW_ROWS:
            packed = getattr(layer, self.w_q_name)
            y = torch.ops.aten._weight_int4pack_mm_for_cpu(
                rows.bfloat16(), packed, self.group_size, self.pairs
            )
        else:
            y = rows.float() @ self._decoded().T
        y = y.to(x.dtype).reshape(*x.shape[:-1], y.shape[-1])
        return y if bias is None else y + bias

    def _decoded(self) -> Tensor:
        """The weight, float32 [N, K]."""
        codes = torch.cat([self.nibbles & 15, self.nibbles >> 4], dim=1)
        groups = codes.float().reshape(len(codes), -1, self.group_size)
        return torch.addcmul(self.offsets, groups, self.scales).flatten(1)

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
