"""The walk over all blocks: one at a time from the 16-bit checkpoint to its packed shard."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdeploy.account import note
from qdeploy.assignment import needs_data
from qdeploy.calibration import CalibrationSet
from qdeploy.checkpoint.writer import ShardWriter
from qdeploy.distributed import Group
from qdeploy.formats.compressed_tensors import pack, unpack
from qdeploy.kv_cache import by_module
from qdeploy.memory import Budget
from qdeploy.methods.base import Quantized
from qdeploy.modeling.activations import Activations
from qdeploy.modeling.blocks import Block, set_weight
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.modeling.feeds import divided_rows
from qdeploy.modeling.inputs import BlockCall, enter
from qdeploy.modeling.norms import quotient
from qdeploy.modeling.residual import Reference
from qdeploy.modeling.skeleton import finite, materialized
from qdeploy.planned import Plan
from qdeploy.progress import progress
from qdeploy.recipe import Recipe
from qdeploy.reference_linear import ReferenceLinear
from qdeploy.solved import SolvedBlock
from qdeploy.stopwatch import part
from qdeploy.walk import (
    followed_every,
    propagate,
    quantize_with_data,
    quantize_without_data,
    reference_for,
)

REST = "rest"
"""Key of the shard with what is in no block: embeddings, final norm, head."""


@dataclass(frozen=True)
class Task:
    """What is to be done, the same in every process; `model` has no weights."""

    recipe: Recipe
    reader: CheckpointReader
    model: Any
    blocks: list[Block]
    plan: Plan
    group: Group


@dataclass
class Stack:
    """One walk in one process.

    Attributes:
        writer: None in a process that does not write.
        partial: the folder in which the shards are made.
        finished: keys of the shards that an earlier run left there.
        budget: what activations may take.
    """

    task: Task
    writer: ShardWriter | None
    calibration: CalibrationSet | None
    partial: Path
    finished: frozenset[str]
    budget: Budget

    def __post_init__(self) -> None:
        self.device = self.task.group.device
        self.reference: Reference | None = None

    @torch.no_grad()
    def run(self) -> None:
        """Write every shard that is not there yet."""
        if self.writer and REST not in self.finished:
            with part("write"):
                self.writer.add_shard(REST, self._rest())
        last = self._last_with_data()
        with progress("Quantizing", len(self.task.blocks)) as shown:
            shown.note("embedding the calibration samples")
            calls, activations = self._start() if last is not None else ([], None)
            if activations is not None:
                self.reference = self._follow(activations)
            for position, block in enumerate(self.task.blocks):
                shown.note(block.name)
                if activations is None or last is None or position > last:
                    self._without_data(block)
                else:
                    self._with_data(calls[position], activations, is_last=position == last)
                shown.advance()

    def _last_with_data(self) -> int | None:
        """Position of the last unfinished block that needs its inputs; no block runs after it."""
        task = self.task
        wanting = [
            position
            for position, block in enumerate(task.blocks)
            if block.name not in self.finished
            and needs_data(task.recipe, (task.plan[name] for name in block.linears() if name in task.plan))
        ]
        return wanting[-1] if wanting else None

    def _start(self) -> tuple[list[BlockCall], Activations]:
        assert self.calibration is not None
        tokens = self.calibration.tokens
        own = tokens[self.task.group.part(len(tokens))]
        with part("forward"):
            return enter(
                self.task.model,
                self.task.blocks,
                own,
                self.task.reader,
                self.device,
                self.partial,
                self.budget,
                every=followed_every(self.task.plan),
            )

    def _follow(self, activations: Activations) -> Reference | None:
        assert self.calibration is not None
        own = self.task.group.part(len(self.calibration.tokens))
        return reference_for(self.task.plan, activations, own.start, self.task.group)

    def _with_data(self, call: BlockCall, activations: Activations, *, is_last: bool) -> None:
        start, block, task = time.monotonic(), call.block, self.task
        with materialized(task.model, block, task.reader, self.device):
            if block.name in self.finished:
                if self.reference:
                    self.reference.run(call, activations)
                self._restore(block)
                propagate(call, activations)
            else:
                sequential = task.recipe.true_sequential
                solved = quantize_with_data(
                    call,
                    activations,
                    task.plan,
                    true_sequential=sequential,
                    outputs=not is_last,
                    kv_cache=task.recipe.kv_cache is not None,
                    reference=self.reference,
                    group=task.group,
                )
                self._write(block, solved, start)

    def _without_data(self, block: Block) -> None:
        if block.name in self.finished:
            return
        start, task = time.monotonic(), self.task
        with materialized(task.model, block, task.reader, self.device):
            self._write(block, quantize_without_data(block, task.plan, group=task.group), start)

    def _restore(self, block: Block) -> None:
        """Put the weights of a finished shard in place: the block computes as when it was quantized."""
        record = (self.writer.load(block.name), self.writer.notes(block.name)) if self.writer else None
        tensors, notes = self.task.group.share(record)
        linears = block.linears()
        for name, module in linears.items():
            if name in self.task.plan:
                set_weight(module, self._restored(name, tensors))
        # And the rest: norms and biases may have taken over what the columns of others are multiplied by.
        kept = {f"{name}.weight" for name in (*self.task.plan, *notes["plus_one"])}
        for name in tensors.keys() & set(block.parameters) - kept:
            block.module.get_parameter(name.removeprefix(f"{block.name}.")).copy_(tensors[name])
        for norm, readers in notes["plus_one"].items():
            weight = block.module.get_parameter(f"{norm.removeprefix(f'{block.name}.')}.weight")
            s = quotient(weight, tensors[f"{norm}.weight"].to(weight.device))
            for name in readers:
                set_weight(linears[name], linears[name].weight / s)

    def _restored(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """The weight of a layer that is stored in these tensors, float32 [N, K]."""
        planned = self.task.plan[name]
        if planned.without_kernel is not None:
            return tensors[f"{name}.weight"].float()
        packed = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if _owner(key) == name}
        return unpack(packed, planned.scheme).dequantize()

    @part("pack")
    def _write(self, block: Block, solved: SolvedBlock, start: float) -> None:
        if self.writer is None:
            return
        tensors: dict[str, Tensor] = {}
        for name in self._source_names(block.name):
            owner = _owner(name)
            if owner in solved.layers and name == f"{owner}.weight":
                packed = stored(solved.layers[owner].solution.quantized, self.task.reader.dtype(name))
                tensors.update({f"{owner}.{suffix}": tensor.cpu() for suffix, tensor in packed.items()})
            else:
                tensors[name] = self.task.reader.get(name)
                if owner in solved.divided:
                    s, plus_one = solved.divided[owner].cpu(), owner in solved.plus_one
                    tensors |= divided_rows({name: tensors[name]}, s, plus_one=plus_one)
        tensors |= solved.kv_cache
        notes = [note(name, found, self.task.plan) for name, found in solved.layers.items()]
        seconds = round(time.monotonic() - start, 3)
        with part("write"):
            self.writer.add_shard(
                block.name,
                tensors,
                {
                    "modules": notes,
                    "kv_cache": {
                        module: {suffix: float(scale) for suffix, scale in scales.items()}
                        for module, scales in by_module(solved.kv_cache).items()
                    },
                    "plus_one": solved.plus_one,
                    "seconds": seconds,
                },
            )

    @part("load")
    def _rest(self) -> dict[str, Tensor]:
        inside = {name for block in self.task.blocks for name in self._source_names(block.name)}
        return {name: finite(name, self.task.reader) for name in self.task.reader.names if name not in inside}

    def _source_names(self, block: str) -> list[str]:
        return [name for name in self.task.reader.names if name.startswith(f"{block}.")]


def stored(quantized: Quantized, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors that stand for a layer, by suffix; `dtype` is that of 16-bit weights."""
    if isinstance(quantized, ReferenceLinear):
        return {"weight": quantized.weight.to(dtype).contiguous()}
    return pack(quantized)


def _owner(tensor: str) -> str:
    """The module that a tensor belongs to."""
    return tensor.rpartition(".")[0]
