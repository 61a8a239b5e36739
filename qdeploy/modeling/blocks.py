"""A model's structure, found in the model itself: no file per architecture.

The decoder is the longest list of modules of one class; what is quantized are the linear layers inside; which
of them read the same tensor is seen when the block runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from qdeploy.errors import CheckpointError
from qdeploy.modeling.experts import routers


@dataclass(frozen=True, slots=True)
class Block:
    """One decoder block and its name in the checkpoint, e.g. "model.layers.3"."""

    name: str
    module: nn.Module

    @property
    def parameters(self) -> list[str]:
        """Full names of the block's parameters."""
        return [f"{self.name}.{name}" for name, _ in self.module.named_parameters()]

    def linears(self) -> dict[str, nn.Linear]:
        """Full name → linear layer; routers, which stay in 16 bit, are left out."""
        kept = routers(self.module)
        return {
            f"{self.name}.{name}": module
            for name, module in self.module.named_modules()
            if isinstance(module, nn.Linear) and name not in kept
        }

    @property
    def features(self) -> list[int]:
        """Input and output features of the linear layers."""
        return [size for module in self.linears().values() for size in module.weight.shape]


def find_blocks(model: nn.Module) -> list[Block]:
    """The decoder blocks, in order.

    Raises:
        CheckpointError: no list of like blocks, or most weights of a block are not in linear layers.
    """
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, nn.ModuleList) and not inside and _is_stack(module):
            lists[name] = module
    if not lists:
        raise CheckpointError(
            f"Unknown architecture: {type(model).__name__} has no list of decoder blocks with linear layers."
        )
    name = max(lists, key=lambda name: len(lists[name]))
    blocks = [Block(f"{name}.{i}", module) for i, module in enumerate(lists[name])]
    _check_linears(blocks[-1])
    return blocks


def _is_stack(modules: nn.ModuleList) -> bool:
    same_class = len({type(module) for module in modules}) == 1
    return same_class and any(isinstance(module, nn.Linear) for module in modules.modules())


def _check_linears(block: Block) -> None:
    """Refuse a block whose weights are mostly elsewhere, e.g. in fused experts: it would stay in 16 bit."""
    linear = sum(module.weight.numel() for module in block.linears().values())
    name, largest = max(block.module.named_parameters(), key=lambda item: item[1].numel())
    total = sum(parameter.numel() for parameter in block.module.parameters())
    if linear < total / 2:
        raise CheckpointError(
            f"Unknown architecture: only {linear / total:.0%} of {block.name} is in linear layers; its "
            f"largest weight is {name} {list(largest.shape)}, which qdeploy cannot quantize."
        )


def set_weight(module: nn.Linear, weight: Tensor) -> None:
    """Give `module` another weight [N, K]."""
    module.weight = nn.Parameter(weight.to(module.weight.device), requires_grad=False)


def shared_inputs(block: Block, forward: Callable[[], object]) -> list[list[str]]:
    """Full names of the block's linear layers, grouped by the tensor they read, in order of first call.

    `forward` runs the block once; layers that it does not call are in no group.
    """
    seen: list[tuple[Tensor, int, list[str]]] = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0]
            for tensor, version, names in seen:
                if same_memory(tensor, x) and version == x._version:
                    names.append(name)
                    return
            seen.append((x, x._version, [name]))

        return hook

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in block.linears().items()]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return _first_calls([names for _, _, names in seen])


def same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are views of the same numbers, in the same shape."""
    if not a.numel():  # the inputs of all experts that no token chose start nowhere
        return a is b
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()


def _first_calls(groups: list[list[str]]) -> list[list[str]]:
    """Drop calls of a layer after its first, and groups that are then empty."""
    called: set[str] = set()
    first = []
    for group in groups:
        fresh = [name for name in dict.fromkeys(group) if name not in called]
        called.update(fresh)
        if fresh:
            first.append(fresh)
    return first
