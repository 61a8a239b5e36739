"""What a run will need, from shapes alone: bytes of RAM, GPU and disk by part.

Two moments are the largest: while the samples are embedded, and while the largest block is quantized. What
belongs to the model lives on the GPU where there is one, in RAM otherwise.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from qdeploy.assignment import FUSED, needs_data
from qdeploy.checkpoint.companions import companions
from qdeploy.formats.ct_layout import layout
from qdeploy.memory import Budget, free_memory
from qdeploy.methods.temporaries import hessian_bytes, lack_bytes, solving_bytes
from qdeploy.modeling.activations import footprint, micro_batches
from qdeploy.modeling.blocks import Block
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.modeling.followed import states_together
from qdeploy.modeling.products import multiplies_bfloat16
from qdeploy.planned import Plan
from qdeploy.recipe import Recipe
from qdeploy.schemes import Scheme
from qdeploy.walk import followed_every

LATER = 64 << 20
"""What tokenizer, text and worker threads take once they are there: 50 to 70 MiB were seen."""

HOLES = 4
"""Of so many bytes in use one more is taken by holes in the heap, where freed tensors are kept: 0.93 to 1.07
GiB with SmolLM2-135M, where tensors, states and libraries take 0.90."""

SHARED = {leaf: siblings[0] for siblings in FUSED for leaf in siblings}
"""Layer → the sibling with which it shares its input."""


@dataclass(frozen=True)
class Estimate:
    """Bytes that a run needs, by part; RAM or GPU unless said otherwise.

    Attributes:
        libraries: what this process has already, and what it will load: always RAM.
        embeddings: what lies before the blocks, while the samples are embedded.
        rest: 16-bit tensors outside the blocks that are made, not mapped, as they are written: always RAM.
        block: the largest block, its codes and packed codes.
        hessians: those that are alive at once.
        solving: temporary matrices of the costliest layer.
        states: hidden states between blocks in RAM.
        running: activations of the micro-batch that runs inside a block.
        halted: activations of micro-batches that wait inside a block.
        halting: how many micro-batches wait.
        batches: how many there are.
        output: the checkpoint on the disk.
        spilled: hidden states in a temporary file.
        limits: what activations may take.
        free: what this process could still take of RAM when that was estimated.
    """

    libraries: int
    embeddings: int
    rest: int
    block: int
    hessians: int
    solving: int
    states: int
    running: int
    halted: int
    halting: int
    batches: int
    output: int
    spilled: int
    limits: Budget
    free: int

    @property
    def model_peak(self) -> int:
        """Bytes at the larger moment for all that lives where the model is."""
        activations = max(self.running + self.halted, self.solving + self.halting * self._each)
        return max(self.embeddings, self.block + self.hessians + activations)

    @property
    def in_use(self) -> int:
        """Bytes of RAM that are alive at the peak, beside the libraries."""
        return max(self.rest, self.states + (0 if self.on_device else self.model_peak))

    @property
    def holes(self) -> int:
        """Bytes of freed tensors that the heap keeps; see `memory.manage_heap`."""
        return self.in_use // HOLES if self.is_ample else 0

    @property
    def memory(self) -> int:
        """Peak of RAM, libraries and holes included."""
        return self.libraries + self.in_use + self.holes

    @property
    def device(self) -> int:
        """Peak of GPU memory."""
        return self.model_peak if self.on_device else 0

    @property
    def bound(self) -> int:
        """What a run may take beside the libraries, whatever the number of its layers."""
        on_cpu = self.embeddings + 2 * self.block + self.hessians + self.limits.memory
        return self.limits.memory if self.on_device else on_cpu

    @property
    def is_ample(self) -> bool:
        """Whether RAM is there, and allowed, for holes in the heap as large as all that is in use."""
        return 2 * self.in_use <= min(self.bound, self.free)

    @property
    def disk(self) -> int:
        """Bytes on the output's disk."""
        return self.output + self.spilled

    @property
    def on_device(self) -> bool:
        """Whether the model lives on a GPU."""
        return self.limits.device is not None

    @property
    def least_budget(self) -> int:
        """The smallest budget under which a micro-batch can run, whatever share the hidden states take."""
        return self.running if self.on_device else math.ceil(self.running * 4 / 3)

    @property
    def _each(self) -> int:
        return self.halted // max(1, min(self.halting, self.batches - 1))


def estimate(
    recipe: Recipe,
    reader: CheckpointReader,
    model: Any,
    blocks: Sequence[Block],
    plan: Plan,
    limits: Budget,
) -> Estimate:
    """What `quantize` will need for this recipe.

    Args:
        recipe: for the calibration samples.
        reader: the 16-bit checkpoint.
        model: its skeleton.
        blocks: its decoder blocks.
        plan: the layers to quantize.
        limits: what activations may take.
    """
    with_data = needs_data(recipe, plan.values())
    inside = {name for block in blocks for name in block.parameters}
    outside = [
        p.numel() for n, p in model.base_model.named_parameters(model.base_model_prefix) if n not in inside
    ]
    largest = max(blocks, key=lambda block: sum(p.numel() for p in block.module.parameters()))
    width = model.get_input_embeddings().embedding_dim
    solving = max(solving_bytes(block.linears(), plan) for block in blocks)
    activations = NO_ACTIVATIONS
    if with_data:
        activations = _activations(recipe, width, blocks, limits, solving, followed_every(plan))
    return Estimate(
        libraries=psutil.Process().memory_info().rss + LATER,
        # In float32, and the largest of them as it is read.
        embeddings=4 * sum(outside) + 2 * max(outside, default=0) if with_data else 0,
        rest=sum(
            _nbytes(reader, name)
            for name in reader.names
            if reader.is_edited(name) and not name.startswith(tuple(f"{block.name}." for block in blocks))
        ),
        block=_block_bytes(
            largest, plan, bfloat16=with_data and limits.device is None and multiplies_bfloat16()
        ),
        hessians=max(_hessian_bytes(block, plan, width, recipe.true_sequential) for block in blocks),
        solving=solving,
        **activations,
        output=sum(_stored_bytes(reader, plan)) + sum(p.stat().st_size for p in companions(reader.folder)),
        limits=limits,
        free=free_memory(),
    )


NO_ACTIVATIONS = dict.fromkeys(("states", "spilled", "running", "halted", "halting", "batches"), 0)


def _activations(
    recipe: Recipe, width: int, blocks: Sequence[Block], limits: Budget, solving: int, every: int | None
) -> dict[str, int]:
    asked = recipe.calibration
    shape = (asked.samples, asked.sequence_length, width)
    total, batches = states_together(shape, every), sum(1 for _ in micro_batches(*shape[:2]))
    resident = total if total <= limits.states else 0
    found = footprint([size for block in blocks for size in block.features], shape)
    halting = found.halting(batches, limits.inside(resident), solving) if recipe.true_sequential else 0
    return {
        "states": resident,
        "spilled": total - resident,
        "running": found.running,
        "halted": found.together(batches, halting) - found.running,
        "halting": halting,
        "batches": batches,
    }


def _block_bytes(block: Block, plan: Plan, *, bfloat16: bool) -> int:
    """Weights in float32, in bfloat16 where products are, a byte for each code, and the packed codes."""
    total = 4 * sum(parameter.numel() for parameter in block.module.parameters())
    for name, module in block.linears().items():
        total += 2 * module.weight.numel() if bfloat16 else 0
        if name in plan:
            total += module.weight.numel() + packed_bytes(
                (module.out_features, module.in_features), plan[name].scheme
            )
    return total


def _hessian_bytes(block: Block, plan: Plan, width: int, true_sequential: bool) -> int:
    """With true-sequential order one Hessian at a time, otherwise one for each distinct input.

    Whatever puts out as much as hidden states are wide is taken to write to them.
    """
    inputs: dict[tuple[str, str], int] = {}
    for name, module in block.linears().items():
        if name in plan and plan[name].needs_data:
            parent, _, leaf = name.rpartition(".")
            lack = lack_bytes(module, plan[name].rounder) if module.out_features == width else 0
            inputs[parent, SHARED.get(leaf, leaf)] = hessian_bytes(module.in_features) + lack
    return max(inputs.values(), default=0) if true_sequential else sum(inputs.values())


def _stored_bytes(reader: CheckpointReader, plan: Plan) -> Iterator[int]:
    """Bytes of each tensor or layer of the quantized checkpoint."""
    for name in reader.names:
        owner = name.rpartition(".")[0]
        if owner in plan and name == f"{owner}.weight":
            n, k = reader.shape(name)
            yield packed_bytes((n, k), plan[owner].scheme)
        else:
            yield _nbytes(reader, name)


def _nbytes(reader: CheckpointReader, name: str) -> int:
    return math.prod(reader.shape(name)) * reader.dtype(name).itemsize


def packed_bytes(shape: tuple[int, int], scheme: Scheme) -> int:
    """Bytes of the tensors of a layer [N, K]; see `qdeploy.formats.ct_layout`."""
    return sum(dtype.itemsize * math.prod(size) for dtype, size in layout(scheme, *shape).values())


@dataclass(frozen=True)
class LayerKind:
    """Linear layers of one name within the block, one shape and one treatment.

    Attributes:
        name: within the block; numbers in it, such as an expert's, are written as *.
        count: in the whole model.
        shape: (N, K).
        how: scheme and method.
        hessian_bytes: of the Hessian [K, K] of one of them; 0 where none is needed.
    """

    name: str
    count: int
    shape: tuple[int, int]
    how: str
    hessian_bytes: int


def layer_kinds(plan: Plan, blocks: Iterable[Block]) -> list[LayerKind]:
    """The kinds of linear layers in the blocks, in order."""
    counts: Counter[tuple[str, tuple[int, int], str, int]] = Counter()
    for block in blocks:
        for name, module in block.linears().items():
            how, hessian = "16 bit", 0
            if name in plan:
                planned = plan[name]
                how = f"{planned.scheme.describe()}, {planned.method}"
                hessian = hessian_bytes(module.in_features) if planned.needs_data else 0
            inner = re.sub(r"(?<=\.)\d+(?=\.)", "*", name.removeprefix(f"{block.name}."))
            counts[inner, (module.out_features, module.in_features), how, hessian] += 1
    return [
        LayerKind(name, count, shape, how, hessian) for (name, shape, how, hessian), count in counts.items()
    ]
