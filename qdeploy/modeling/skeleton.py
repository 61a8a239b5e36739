"""The model's own code without its weights.

Modules are built on the meta device, which takes no memory, and filled from the checkpoint one part at a time
in float32, in which every bfloat16 and float16 weight is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qdeploy.errors import CheckpointError
from qdeploy.modeling.attention import fast_attention
from qdeploy.modeling.blocks import Block
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.modeling.experts import split_experts
from qdeploy.modeling.products import fast_products
from qdeploy.stopwatch import part

COMPUTE_DTYPE = torch.float32

PIECE = 1 << 20
"""Weights that are checked at once."""


def build_skeleton(reader: CheckpointReader) -> Any:
    """The transformers causal language model of `reader`'s config, all parameters on the meta device.

    Experts have layers of their own, under the names that hub checkpoints give them. Where `reader` has them
    fused, as transformers can save them too, it is taught these names.

    Raises:
        CheckpointError: transformers has no such architecture, or its config is broken or describes other
            parameters than the checkpoint holds.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(reader.folder, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False, dtype=COMPUTE_DTYPE)
    except (ValueError, KeyError, ImportError) as error:
        raise _unknown(reader, error) from error
    except (StrictDataclassError, RuntimeError, ArithmeticError, AssertionError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{reader.folder / 'config.json'} holds a value that no model can have: {reason}. "
            "Download it again."
        ) from error
    _split_experts(model, reader)
    _check_parameters(model, reader)
    return model.eval().requires_grad_(False)


def _split_experts(model: nn.Module, reader: CheckpointReader) -> None:
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    parts = split_experts(model)
    fused = {part.name for part in parts.values()}
    stored = {name for name in fused if name in reader and reader.shape(name) == shapes[name]}
    reader.rename({name: part for name, part in parts.items() if part.name in stored})


def _unknown(reader: CheckpointReader, error: Exception) -> CheckpointError:
    import transformers

    kind, reason = reader.config.get("model_type"), str(error).splitlines()[0]
    return CheckpointError(
        f"Unknown architecture {kind!r} in {reader.folder / 'config.json'}: transformers "
        f"{transformers.__version__} cannot build a causal language model of it ({reason})"
    )


def _check_parameters(model: nn.Module, reader: CheckpointReader) -> None:
    if "quantization_config" in reader.config:
        raise CheckpointError(f"{reader.folder} is already quantized. Start from the 16-bit model.")
    expected = {name: tuple(tensor.shape) for name, tensor in _stored(model)}
    wrong = [
        f"{name} {list(shape)} ({'shape ' + str(list(reader.shape(name))) if name in reader else 'absent'})"
        for name, shape in expected.items()
        if name not in reader or reader.shape(name) != shape
    ]
    if wrong:
        raise CheckpointError(
            f"{reader.folder} does not hold the weights that its config.json describes: {len(wrong)} of "
            f"{len(expected)} differ, the first {wrong[0]}. Weights and config are of different models."
        )


def _stored(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, and buffers that a checkpoint has to hold; what is shared once."""
    kept = set(model.state_dict())
    yield from model.named_parameters()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in kept)


@contextmanager
def materialized(
    model: nn.Module, block: Block, reader: CheckpointReader, device: torch.device, *, fast: bool = True
) -> Iterator[None]:
    """The block with its weights as `materialize` loads them, for the time of a `with`.

    Args:
        fast: let it round products to bfloat16 where that is faster.

    Raises:
        CheckpointError: a weight is NaN or infinite.
    """
    materialize(model, block.parameters, reader, device)
    try:
        with ExitStack() as stack:
            if fast:
                stack.enter_context(fast_products(block.linears().values(), device))
                stack.enter_context(fast_attention(block.module, device))
            yield
    finally:
        release(model, block.parameters)


@part("load")
def materialize(
    model: nn.Module, names: Iterable[str], reader: CheckpointReader, device: torch.device
) -> None:
    """Load the named parameters of `model` as float32 on `device`.

    Raises:
        CheckpointError: a weight is NaN or infinite.
    """
    state = {name: finite(name, reader).to(device, COMPUTE_DTYPE) for name in names}
    model.load_state_dict(state, strict=False, assign=True)


def release(model: nn.Module, names: Iterable[str]) -> None:
    """Put the named parameters of `model` back on the meta device."""
    state = {name: model.get_parameter(name).to("meta") for name in names}
    model.load_state_dict(state, strict=False, assign=True)


def finite(name: str, reader: CheckpointReader) -> Tensor:
    """The tensor of that name.

    Raises:
        CheckpointError: it holds NaN or infinity; says how many.
    """
    tensor = reader.get(name)
    # In pieces: the test makes copies, and an embedding is large.
    pieces = torch.split(tensor.flatten(), PIECE)
    bad = sum(int(piece.numel() - piece.isfinite().sum()) for piece in pieces)
    if bad:
        raise CheckpointError(
            f"{name} in {reader.folder} holds {bad} NaN or infinite values of {tensor.numel()}. "
            "The checkpoint is damaged; download it again or use another revision."
        )
    return tensor


def materialize_buffers(model: Any, reader: CheckpointReader, device: torch.device) -> None:
    """Load on `device` the buffers that the checkpoint holds, such as what routers add to experts' scores.

    Those that none holds, such as rotary frequencies, are computed again, as transformers' own loader does:
    `_init_weights` is where a model says what such a buffer holds. All are small, and stay.

    Raises:
        CheckpointError: a stored buffer is NaN or infinite, or the model has a buffer that is not stored and
            does not say what it holds.
    """
    kept = set(model.state_dict())
    materialize(model, (name for name, _ in model.named_buffers() if name in kept), reader, device)
    for prefix, module in model.named_modules():
        names = [n for n, _ in module.named_buffers(recurse=False) if f"{prefix}.{n}".lstrip(".") not in kept]
        for name in names:
            empty = torch.empty_like(module.get_buffer(name), device=device)
            setattr(module, name, empty.fill_(torch.nan) if empty.is_floating_point() else empty)
        if names:
            model._init_weights(module)
        for name in names:
            buffer = module.get_buffer(name)
            if not buffer.is_floating_point() or buffer.isnan().any():
                raise CheckpointError(
                    f"{type(model).__name__} does not say how to compute its buffer {prefix}.{name}, "
                    "so it cannot be loaded block by block."
                )
