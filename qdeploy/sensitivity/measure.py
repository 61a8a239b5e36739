"""Measuring a model: what is asked, what is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from qdeploy import registry
from qdeploy.memory import budget, manage_heap
from qdeploy.methods.base import needs_hessian
from qdeploy.modeling.activations import micro_batches
from qdeploy.modeling.blocks import find_blocks
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.modeling.hub import resolve_model
from qdeploy.modeling.skeleton import build_skeleton
from qdeploy.pipeline import calibration_tokens, shapes
from qdeploy.progress import progress
from qdeploy.recipe import CalibrationConfig, Rule
from qdeploy.schemes import Scheme
from qdeploy.sensitivity.assign import Assignment
from qdeploy.sensitivity.candidates import Candidate, Supports, choices
from qdeploy.sensitivity.divergence import measured_harms, measured_together
from qdeploy.sensitivity.gradient import gradient_harms
from qdeploy.sensitivity.harm import Harm, Harms, Score
from qdeploy.sensitivity.memory import refuse_what_cannot_fit
from qdeploy.sensitivity.size import Sizes
from qdeploy.sensitivity.subject import Subject, record
from qdeploy.sensitivity.units import Unit, find_units
from qdeploy.support import Support

DRAWS = 16
"""Sets of labels for each sample."""

FITTED = 4
"""Samples for Hessians, for each that harm is measured on: GPTQ would do too well on those that it saw."""


@dataclass(frozen=True)
class Asked:
    """What is to be measured.

    Attributes:
        model: folder or hub id of the 16-bit model.
        candidates: schemes to try.
        engine: exporter whose kernels decide which of them may be used.
        gpu: device that it exports for.
        score: how harm is found.
        calibration: the text.
        method: stages of the recipe, joined by "+"; the last of them rounds, transforms are left out.
    """

    model: str
    candidates: Sequence[Candidate]
    engine: str
    gpu: str
    score: Score
    calibration: CalibrationConfig
    method: str


@dataclass(frozen=True)
class Prepared:
    """A model that can be measured.

    Attributes:
        subject: the model, its units and their schemes, and the text.
        refused: candidate → why the first unit that may not get it may not, and how many may not.
        sizes: what choices take.
    """

    subject: Subject
    refused: dict[str, tuple[str, int]]
    sizes: Sizes


def prepare(asked: Asked, spill: Path) -> Prepared:
    """Read the model's shapes and the text.

    Args:
        spill: folder on whose disk hidden states are kept that memory has no room for.

    Raises:
        CheckpointError: the model cannot be read or is of an unknown architecture.
        RecipeError: the stages are not transforms and then a rounder.
        UsageError: none of the schemes can be used.
        CalibrationError: the text is missing or too short.
        ResourceError: memory cannot hold it.
    """
    rule = Rule.model_validate({"match": "Linear", "scheme": "W4A16", "stages": asked.method.split("+")})
    rounder = rule.stages[-1].config
    reader = CheckpointReader(resolve_model(asked.model))
    model = build_skeleton(reader)
    blocks = find_blocks(model)
    units = find_units({block.name: shapes([block]) for block in blocks})
    found = choices(units, asked.candidates, support_of(asked.engine, asked.gpu))
    subject = Subject(
        reader=reader,
        model=model,
        blocks=blocks,
        units=units,
        schemes=found.of,
        tokens=calibration_tokens(_enough(asked.calibration, rounder), model, reader).tokens,
        scored=asked.calibration.samples,
        rounder=rounder,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        limits=budget(),
        spill=spill,
        exact=asked.score == "kl",
    )
    refuse_what_cannot_fit(subject, asked.score, DRAWS)
    manage_heap(ample=True)
    return Prepared(subject, dict(found.refused), Sizes(reader, units))


def _enough(text: CalibrationConfig, rounder: Any) -> CalibrationConfig:
    """With samples for Hessians, if the method wants them."""
    times = 1 + FITTED if needs_hessian(rounder) else 1
    return text.model_copy(update={"samples": times * text.samples})


def support_of(engine: str, gpu: str) -> Supports:
    """How an engine runs units on a device."""
    exporter = registry.load("exporters", engine)()

    @cache
    def support(scheme: Scheme, n: int, k: int, experts: bool) -> Support:
        found: Support = exporter.support(scheme, n, k, gpu=gpu, experts=experts)
        return found

    def supports(unit: Unit, scheme: Scheme) -> Support:
        return support(scheme, *unit.kernel_shape, unit.experts)

    return supports


def measure(subject: Subject, score: Score, seed: int) -> Harms:
    """The harm of every unit in every scheme, all else in 16 bit.

    Args:
        score: "gradient": to second order, from one backward pass; "kl": as it is, in many forward passes.
        seed: of the gradient's labels.

    Raises:
        CheckpointError: a weight is not finite.
        OutputError: the disk is full.
    """
    blocks, trials = len(subject.blocks), len(subject.trials)
    if score == "kl":
        with progress("Sensitivity", 2 * blocks + _batches(subject) * trials) as task:
            return measured_harms(record(subject, task, copies=trials), task)
    with progress("Sensitivity", 2 * blocks + 1) as task:
        return gradient_harms(record(subject, task), DRAWS, seed, task)


def measure_together(subject: Subject, assignment: Assignment) -> Harm:
    """The harm of all units in their schemes at once, in float32."""
    exact = replace(subject, exact=True)
    with progress("Checking the assignment", 2 * len(subject.blocks) + _batches(subject)) as task:
        return measured_together(record(exact, task, copies=1), assignment, task)


def _batches(subject: Subject) -> int:
    return sum(1 for _ in micro_batches(subject.scored, subject.tokens.shape[1]))
