"""What a model takes of the memory of a device, and what that leaves for the cache.

Weights are exact to what every device holds whole (norms, routers), the cache follows the model's config, and
what an engine takes beside both (`overhead`) is an estimate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from qdeploy.exporters import parallel
from qdeploy.exporters.cache_size import CacheSize, UnknownCacheError, cache_size
from qdeploy.exporters.layers import KEY_VALUE
from qdeploy.exporters.targets import GIB, Target
from qdeploy.formats.packed import block_of, has_cache_in_fp8
from qdeploy.modeling.checkpoint import CheckpointReader

OVERHEAD_BYTES, OVERHEAD_SHARE = 2 * GIB, 0.05
"""Estimate of what an engine takes beside weights and cache: CUDA's context, NCCL's buffers, activations of
the largest batch, CUDA graphs; the second is a share of the device's memory, with which batches grow.

On 79.2 GiB vLLM measured 3.1 GiB with Llama-3-8B and 4.8 GiB with it on two devices, CUDA graphs not counted
(https://github.com/vllm-project/vllm/pull/10511); this makes it 6.0 GiB.
"""

CPU_CACHE_GIB = 2
"""VLLM_CPU_KVCACHE_SPACE of launch files: without it vLLM reserves nearly all of the machine's memory."""

FLOAT32 = 4
"""Bytes. `qdeploy serve` runs in float32 on processors without instructions for bfloat16."""


@dataclass(frozen=True, slots=True)
class Engine:
    """How an engine divides a device's memory.

    Attributes:
        length_option: its argument for the length of the longest sequence.
        share: of the memory that it takes at all.
        cache_share: of what weights and overhead leave of it, that becomes cache.
        in_flight: tokens that it works on at a time; None: layers with a window are counted as if without.
    """

    name: str
    length_option: str
    share: float
    cache_share: float
    in_flight: Callable[[Target], int] | None


def _vllm_in_flight(target: Target) -> int:
    """Twice the largest batch (asynchronous scheduling), by `get_batch_defaults` of vLLM's `arg_utils.py`."""
    memory = target.memory or 0
    if memory >= 160 * GIB:
        return 2 * 16_384
    return 2 * (8192 if memory >= 70 * GIB and "a100" not in target.name.lower() else 2048)


VLLM = Engine("vLLM", "--max-model-len", 0.92, 1.0, _vllm_in_flight)
"""0.92 is the default of `gpu_memory_utilization` in 0.32.0 (`config/cache.py`); it was 0.9 before."""

TENSORRT_LLM = Engine("TensorRT-LLM", "--max_seq_len", 1.0, 0.9, None)
"""`free_gpu_memory_fraction`, as `trtllm_launch` sets it, is of what is free with the weights loaded."""


@dataclass(frozen=True)
class Fit:
    """A checkpoint on a number of devices of a kind.

    Attributes:
        config: transformers' config of its text part.
    """

    reader: CheckpointReader
    config: Any
    engine: Engine
    target: Target
    devices: int

    @cached_property
    def weights(self) -> int:
        """Bytes of weights on each device."""
        return weights_per_device(self.reader, self.devices)

    @property
    def overhead(self) -> int:
        """Estimate of the bytes that the engine takes beside weights and cache; none is made for a CPU."""
        memory = self.target.memory
        return 0 if memory is None else OVERHEAD_BYTES + int(OVERHEAD_SHARE * memory)

    @property
    def cache(self) -> int:
        """Bytes for the cache of each device."""
        if self.target.memory is None:
            return CPU_CACHE_GIB * GIB
        left = self.engine.share * self.target.memory - self.weights - self.overhead
        return max(0, int(self.engine.cache_share * left))

    @property
    def in_flight(self) -> int:
        """Tokens that the engine works on at a time."""
        return self.engine.in_flight(self.target) if self.engine.in_flight else 0

    @cached_property
    def size(self) -> CacheSize:
        """What tokens take of the cache.

        Raises:
            UnknownCacheError: that is not known for this model.
        """
        block = block_of(self.reader)
        sixteen = FLOAT32 if self.target.memory is None else 2
        element = 1 if block is not None and has_cache_in_fp8(block) else sixteen
        found = cache_size(self.config, self.devices, element)
        return found if self.engine.in_flight else CacheSize(found.per_token)

    def holds(self, tokens: int) -> bool:
        """Whether the cache has room for so long a sequence; for anything, where its size is not known."""
        try:
            return self.size.of_sequence(tokens, self.in_flight) <= self.cache
        except UnknownCacheError:
            return self.cache > 0


def weights_per_device(reader: CheckpointReader, tensor_parallel: int) -> int:
    """Bytes of weights on each of the devices.

    Matrices are dealt out, those of key/value heads to no more devices than there are heads; vectors are on
    every device. Routers and the first halves of latent attention, which are too, are counted as dealt out,
    so that the sum is never too large. Weights in float32 count as the 16 bits that engines make of them.
    """
    kv_heads = parallel.heads(reader.config)[1]
    tied = (reader.config.get("text_config") or reader.config).get("tie_word_embeddings", False)
    return sum(
        _bytes(reader, name) // _parts(reader, name, tensor_parallel, kv_heads)
        for name in reader.names
        if not (tied and name == "lm_head.weight")
    )


def _bytes(reader: CheckpointReader, name: str) -> int:
    dtype = reader.dtype(name)
    halved = dtype == torch.float32 and name.endswith(".weight")
    return int(torch.Size(reader.shape(name)).numel()) * (2 if halved else dtype.itemsize)


def _parts(reader: CheckpointReader, name: str, tensor_parallel: int, kv_heads: int) -> int:
    if len(reader.shape(name)) < 2:
        return 1
    return min(tensor_parallel, kv_heads) if set(name.split(".")) & set(KEY_VALUE) else tensor_parallel
