"""Mixtures of experts with a linear layer for every expert and matrix, named as in the checkpoint.

Hub checkpoints hold one tensor for each (`…block_sparse_moe.experts.3.w1.weight`), and so do the packed ones
that engines load. transformers 5 fuses the experts of a block into two tensors, gate_up_proj [E, 2I, H] and
down_proj [E, H, I], under names of its own, and converts whenever it loads or saves. Here its modules are
turned back, and its own conversion says what the parts are called: no file per architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from qdeploy.modeling.checkpoint import Part

GATE_UP, DOWN = "gate_up_proj", "down_proj"
LAYOUT = {
    "has_gate": True,
    "is_concatenated": True,
    "is_transposed": False,
    "has_bias": False,
    "has_post_expert_norm": False,
}
"""How transformers describes experts that compute down(act(gate(x)) · up(x)) from matrices [E, N, K]."""

Names = list[tuple[str, str, str]]
"""The checkpoint's names of each expert's gate, up and down layer."""


class _Linear(nn.Linear):
    """A layer that is given its weight: drawing random ones for thousands of experts takes long."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)

    def reset_parameters(self) -> None:
        """Nothing to set."""


class Expert(nn.Module):
    """One expert, its three layers named as in the checkpoint.

    Args:
        layers: name → weight of gate [I, H], up [I, H] and down [H, I], in this order.
        combine: gate's and up's outputs side by side [n, 2I] → act(gate) · up [n, I].
    """

    def __init__(self, layers: dict[str, Tensor], combine: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._combine = combine
        for name, weight in layers.items():
            self.add_module(name, _Linear(weight))

    def forward(self, x: Tensor) -> Tensor:
        """[n, H] → [n, H]."""
        gate, up, down = self.children()
        output: Tensor = down(self._combine(torch.cat([gate(x), up(x)], dim=-1)))
        return output


class Experts(nn.Module):
    """The experts of a block, "0" to "E-1", called as the fused module that they replace."""

    def __init__(self, experts: Iterable[Expert]) -> None:
        super().__init__()
        for i, expert in enumerate(experts):
            self.add_module(str(i), expert)

    def forward(self, states: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Sum of what each token's experts make of it, [n, H].

        Args:
            states: [n, H].
            chosen: int64 [n, k], the experts of each token; E stands for none.
            weights: [n, k], how much each counts.
        """
        output = torch.zeros_like(states)
        for i, expert in enumerate(self.children()):
            token, rank = torch.where(chosen == i)
            # An expert that no token chose runs too, so that all forwards call the same layers in one order.
            result = expert(states[token]) * weights[token, rank, None]
            output.index_add_(0, token, result.to(output.dtype))
        return output


def split_experts(model: Any) -> dict[str, Part]:
    """Replace, in place, the fused experts of a transformers model; it computes what it did before.

    Weights become views of the fused ones. Experts of another layout, or that hub checkpoints hold fused,
    stay as they are.

    Returns:
        Name of each parameter that has a new one → where it was.
    """
    before = [*model.named_parameters()]
    parts: dict[str, Part] = {}
    for path, names in _checkpoint_names(model).items():
        parts |= _split(model, path, names)
    old = {id(parameter): name for name, parameter in before}
    now = {name: old.get(id(parameter), name) for name, parameter in model.named_parameters()}
    return parts | {name: Part(was) for name, was in now.items() if was != name}


def _is_fused(module: nn.Module) -> bool:
    own = dict(module.named_parameters(recurse=False))
    return own.keys() == {GATE_UP, DOWN} and all(
        getattr(module, field, None) is value for field, value in LAYOUT.items()
    )


def _checkpoint_names(model: Any) -> dict[str, Names]:
    """Path of fused experts → what a saved checkpoint calls their layers, unless it holds them fused too.

    transformers is asked what it would save, with a number in the place of each matrix: the number that
    comes out under a name says which matrix the name is for.
    """
    from transformers.core_model_loading import revert_weight_conversion

    held = {path: module for path, module in model.named_modules() if _is_fused(module)}
    numbers: dict[str, Tensor] = {}
    rows: dict[str, Tensor] = {}
    for path, module in held.items():
        count = len(module.get_parameter(DOWN))
        rows[path] = torch.arange(3 * count).reshape(count, 3) + sum(map(torch.numel, rows.values()))
        numbers |= {f"{path}.{GATE_UP}": rows[path][:, :2, None], f"{path}.{DOWN}": rows[path][:, 2:, None]}
    saved = revert_weight_conversion(model, numbers) if numbers else {}
    named = {int(n): name.removesuffix(".weight") for name, n in saved.items() if n.numel() == 1}
    found = {
        path: [
            (named.get(gate, ""), named.get(up, ""), named.get(down, "")) for gate, up, down in row.tolist()
        ]
        for path, row in rows.items()
    }
    return {path: names for path, names in found.items() if _is_regular(names, depth=path.count("."))}


def _is_regular(names: Names, depth: int) -> bool:
    """Whether they are PATH.0.LEAF, PATH.1.LEAF and so on, with as many dots in PATH as `depth`."""
    path = names[0][0].rpartition(".")[0].rpartition(".")[0]
    leaves = [name.rpartition(".")[2] for name in names[0]]
    regular = [tuple(f"{path}.{i}.{leaf}" for leaf in leaves) for i in range(len(names))]
    return names == regular and path.count(".") == depth


def _split(model: Any, path: str, names: Names) -> dict[str, Part]:
    """Replace the fused experts at `path`; returns where the weight of every new layer was."""
    fused = model.get_submodule(path)
    width = fused.get_parameter(DOWN).shape[2]
    gate_up, down = f"{path}.{GATE_UP}", f"{path}.{DOWN}"
    parts: dict[str, Part] = {}
    experts = []
    for i, layers in enumerate(names):
        places = Part(gate_up, (i, slice(width))), Part(gate_up, (i, slice(width, None))), Part(down, (i,))
        leaves = [name.rpartition(".")[2] for name in layers]
        weights = [model.get_parameter(part.name)[part.index].detach() for part in places]
        experts.append(Expert(dict(zip(leaves, weights, strict=True)), fused._apply_gate))
        parts |= zip([f"{name}.weight" for name in layers], places, strict=True)
    fused._parameters.clear()  # the module lives on as the owner of _apply_gate
    model.set_submodule(path, Experts(experts))
    _rename(model, path.split("."), names[0][0].split(".")[:-2])
    return parts


def _rename(model: nn.Module, old: list[str], new: list[str]) -> None:
    """Give modules along a path other names; as attributes they keep the old ones too, which code uses."""
    for depth, (was, name) in enumerate(zip(old, new, strict=True)):
        if was != name:
            parent = model.get_submodule(".".join(new[:depth]))
            children = {name if key == was else key: child for key, child in parent._modules.items()}
            parent._modules.clear()
            parent._modules.update(children)
            parent.__dict__[was] = children[name]


def routers(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Name → (N, K) of what stands beside experts and decides how much each counts.

    Routers and the gates of shared experts: small, and an error of theirs sends tokens elsewhere.
    """
    return {
        f"{path}.{name}".lstrip("."): (weight.shape[0], weight.shape[1])
        for path, module in model.named_modules()
        if any(isinstance(child, Experts) for child in module.children())
        for name, child in module.named_children()
        if isinstance(weight := getattr(child, "weight", None), Tensor) and weight.ndim == 2
    }


def matrices(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Name → (N, K) of every linear layer and router, in the model's order."""
    deciding = routers(model)
    return {
        name: deciding.get(name) or (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if name in deciding or isinstance(module, nn.Linear)
    }
