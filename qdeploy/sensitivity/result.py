"""A whole run: measure, choose, check, write."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qdeploy.files import write_text
from qdeploy.memory import format_size
from qdeploy.recipe import CalibrationConfig
from qdeploy.sensitivity.assign import Assigned, Target, assign
from qdeploy.sensitivity.harm import Harm, Harms
from qdeploy.sensitivity.measure import Asked, Prepared, measure, measure_together, prepare
from qdeploy.sensitivity.written import recipe_of, recipe_text


@dataclass(frozen=True)
class Chosen:
    """An assignment that meets a target.

    Attributes:
        target: the target.
        assigned: the choices and what they come to.
        together: KL measured with all units in their schemes at once.
        recipe: the text of the recipe.
    """

    target: Target
    assigned: Assigned
    together: Harm
    recipe: str


@dataclass(frozen=True)
class Result:
    """What was found.

    Attributes:
        asked: what was to be measured.
        prepared: the model, its units and the schemes that they were tried in.
        harms: of every unit in every scheme.
        seconds: the measurement, without the check.
        chosen: None without a target.
    """

    asked: Asked
    prepared: Prepared
    harms: Harms
    seconds: float
    chosen: Chosen | None


def run(asked: Asked, target: Target | None, output: Path | None) -> Result:
    """Measure, and with a target choose, check, and write the recipe to `output` if there is one.

    Raises:
        UsageError: a scheme or the target cannot work.
        RecipeError: the stages are not transforms and then a rounder.
        CheckpointError: the model cannot be read or is of an unknown architecture.
        CalibrationError: the text is missing or too short.
        ResourceError: memory cannot hold it.
        OutputError: the disk refuses.
    """
    prepared = prepare(asked, output.resolve().parent if output else Path())
    start = time.monotonic()
    harms = measure(prepared.subject, asked.score, asked.calibration.seed)
    result = Result(asked, prepared, harms, time.monotonic() - start, None)
    if target is None:
        return result
    chosen = _choose(result, target)
    if output is not None:
        write_text(output, chosen.recipe)
    return Result(asked, prepared, harms, result.seconds, chosen)


def _choose(result: Result, target: Target) -> Chosen:
    subject, sizes = result.prepared.subject, result.prepared.sizes
    assigned = assign(subject.units, subject.schemes, result.harms, sizes, target)
    together = measure_together(subject, assigned.choices)
    seen = result.asked.calibration
    calibration = CalibrationConfig(source=seen.source, seed=seen.seed)
    recipe = recipe_of(result.asked.model, subject.units, assigned.choices, result.asked.method, calibration)
    text = recipe_text(recipe, _comments(result, target, assigned, together))
    return Chosen(target, assigned, together, text)


def _comments(result: Result, target: Target, assigned: Assigned, together: Harm) -> Iterator[str]:
    asked, text = result.asked, result.asked.calibration
    sources = ", ".join(map(str, text.source))
    yield f"Made by qdeploy sensitivity for {asked.engine} on {asked.gpu}. Target: {target}."
    yield f"Predicted: {assigned.bits:.4f} bits per weight of the blocks, with scales and zero points;"
    yield f"  weight files of {format_size(assigned.size)};"
    yield f"  KL {assigned.harm:.4f} nats per token, the sum of each part's alone ({asked.score} score)."
    yield f"Measured with all parts together: KL {together.nats:.4f}."
    yield f"Text: {text.samples} x {text.sequence_length} tokens of {sources}, seed {text.seed}."
    yield "The first rule that matches a layer decides. q, k and v, gate and up, and all experts of a block"
    yield "need one scheme; scheme: none leaves layers in 16 bit."
