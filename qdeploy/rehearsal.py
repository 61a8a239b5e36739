"""How long a run will take: what comes before the blocks and two of them, done for real and timed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qdeploy.calibration import CalibrationSet
from qdeploy.checkpoint.tensor_file import room_for, write_tensors
from qdeploy.estimate import Estimate, estimate
from qdeploy.memory import Budget, manage_heap
from qdeploy.modeling.activations import Activations
from qdeploy.modeling.blocks import Block
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.modeling.inputs import BlockCall, enter
from qdeploy.modeling.residual import Reference
from qdeploy.modeling.skeleton import materialized
from qdeploy.pipeline import calibration_set, open_model
from qdeploy.planned import Plan
from qdeploy.recipe import Recipe
from qdeploy.shortage import problems_with
from qdeploy.solved import SolvedBlock
from qdeploy.stack import stored
from qdeploy.walk import followed_every, quantize_with_data, quantize_without_data, reference_for

TIMED = 2
"""Blocks that are run."""


@dataclass(frozen=True)
class Timing:
    """Seconds, measured and extrapolated.

    Attributes:
        preparation: reading text and embeddings, embedding the samples.
        blocks: of each block that was run: load, forward, Hessians, solve, pack, write.
        total: the whole run; the blocks not run take as long as the last that was, by their weights.
    """

    preparation: float
    blocks: list[float]
    total: float


@dataclass(frozen=True)
class Outlook:
    """What a run will need.

    Attributes:
        needed: bytes, by part.
        timing: None where it does not fit, so that nothing was run.
        problems: what does not fit, each with the smallest change.
        blocks: the decoder blocks.
        plan: what is quantized, and how.
    """

    needed: Estimate
    timing: Timing | None
    problems: list[str]
    blocks: list[Block]
    plan: Plan


def rehearse(recipe: Recipe, output: Path, limits: Budget) -> Outlook:
    """Find out what `pipeline.quantize` would need, without writing to `output`.

    Args:
        recipe: what would be done.
        output: the folder that would be made; the timed blocks are written to a temporary one beside it.
        limits: what activations may take.

    Raises:
        QDeployError: as `pipeline.quantize`.
    """
    start = time.monotonic()
    reader, model, blocks, plan = open_model(recipe)
    needed = estimate(recipe, reader, model, blocks, plan, limits)
    problems = list(problems_with(needed, output))
    if problems:
        return Outlook(needed, None, problems, blocks, plan)
    manage_heap(ample=needed.is_ample)
    calibration = calibration_set(recipe, plan, model, reader)
    with _scratch(output) as folder:
        rehearsal = _Rehearsal(recipe, reader, model, blocks, plan, limits, folder)
        timing = rehearsal.run(calibration, start)
    return Outlook(needed, timing, [], blocks, plan)


@contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    existing = next(path for path in output.resolve().parents if path.exists())
    with tempfile.TemporaryDirectory(dir=existing, prefix=".qdeploy-plan-") as folder:
        yield Path(folder)


@dataclass
class _Rehearsal:
    recipe: Recipe
    reader: CheckpointReader
    model: Any
    blocks: list[Block]
    plan: Plan
    limits: Budget
    folder: Path

    def __post_init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.reference: Reference | None = None

    @torch.no_grad()
    def run(self, calibration: CalibrationSet | None, start: float) -> Timing:
        """Time the first blocks; `start` is when the preparation began."""
        calls, activations = self._enter(calibration)
        if activations is not None:
            self.reference = reference_for(self.plan, activations)
        preparation = time.monotonic() - start
        seconds = []
        for position, block in enumerate(self.blocks[:TIMED]):
            begun = time.monotonic()
            with materialized(self.model, block, self.reader, self.device):
                self._write(block, self._solved(block, calls[position] if calls else None, activations))
            seconds.append(time.monotonic() - begun)
        # The first block compiles the loops over weights, the others do not.
        last, rest = _weights(self.blocks[:TIMED][-1:]), _weights(self.blocks[TIMED:])
        return Timing(preparation, seconds, preparation + sum(seconds) + seconds[-1] * rest / last)

    def _solved(self, block: Block, call: BlockCall | None, activations: Activations | None) -> SolvedBlock:
        if call is None or activations is None:
            return quantize_without_data(block, self.plan)
        in_order = self.recipe.true_sequential
        return quantize_with_data(
            call,
            activations,
            self.plan,
            true_sequential=in_order,
            outputs=True,
            kv_cache=self.recipe.kv_cache is not None,
            reference=self.reference,
        )

    def _enter(self, calibration: CalibrationSet | None) -> tuple[list[BlockCall], Activations | None]:
        if calibration is None:
            return [], None
        tokens = calibration.tokens
        return enter(
            self.model,
            self.blocks,
            tokens,
            self.reader,
            self.device,
            self.folder,
            self.limits,
            every=followed_every(self.plan),
        )

    def _write(self, block: Block, solved: SolvedBlock) -> None:
        tensors = {
            f"{name}.{suffix}": tensor.cpu()
            for name, found in solved.layers.items()
            for suffix, tensor in stored(found.solution.quantized, torch.bfloat16).items()
        }
        write_tensors(self.folder / f"{block.name}.safetensors", tensors.items(), room_for(tensors))


def _weights(blocks: Sequence[Block]) -> int:
    return sum(parameter.numel() for block in blocks for parameter in block.module.parameters())
