"""The walk over a model: one block at a time from the 16-bit checkpoint to the packed one.

A block is materialized, quantized, run quantized to make the next block's inputs, packed, written as a shard
and freed; the model is never whole in memory. A run that was stopped goes on after its last finished shard.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from qdeploy import __version__, account
from qdeploy.assignment import needs_data, resolve_schemes
from qdeploy.calibration import CalibrationSet
from qdeploy.calibration import load as load_calibration
from qdeploy.calibration.adequacy import concerns
from qdeploy.calibration.tokenizer import load_tokenizer
from qdeploy.checkpoint.folder import remove_leftovers
from qdeploy.checkpoint.identity import Identity
from qdeploy.checkpoint.manifest import MANIFEST, load_manifest
from qdeploy.checkpoint.model_card import make_card
from qdeploy.checkpoint.writer import ShardWriter
from qdeploy.distributed import ALONE, Group, refuse_idle
from qdeploy.errors import (
    CalibrationError,
    CheckpointError,
    Interrupted,
    OutputError,
    ResourceError,
    is_out_of_memory,
)
from qdeploy.estimate import Estimate, estimate
from qdeploy.files import read_json
from qdeploy.kv_cache import refuse_other_caches
from qdeploy.memory import Budget, budget, manage_heap
from qdeploy.methods import kernels
from qdeploy.modeling.blocks import Block, find_blocks
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.modeling.hub import resolve_model
from qdeploy.modeling.skeleton import build_skeleton
from qdeploy.planned import Plan
from qdeploy.progress import console, warn
from qdeploy.recipe import CalibrationConfig, Recipe
from qdeploy.rotated import rotated
from qdeploy.shortage import less_memory, refuse_what_cannot_fit
from qdeploy.stack import REST, Stack, Task
from qdeploy.stopwatch import measuring

Start = tuple[CalibrationSet | None, Path, frozenset[str]]
"""What the leading process hands out: the samples, the folder of the shards, those already finished."""

NO_WALK = "finished"
"""What it hands out where an earlier run left nothing to do."""


def quantize(
    recipe: Recipe,
    output: Path,
    *,
    restart: bool = False,
    limits: Budget | None = None,
    force: bool = False,
    group: Group = ALONE,
) -> dict[str, Any]:
    """Quantize the recipe's model into the folder `output` and return the manifest written there.

    Linear layers that the recipe quantizes are packed as compressed-tensors; every other tensor keeps its
    bytes. Work in progress is kept in `OUTPUT.partial`, and the same call resumes it; given again when all is
    done, it changes nothing.

    Args:
        recipe: what to do to which layers.
        output: folder to make.
        restart: throw away what an interrupted run left.
        limits: what activations may take, None for a share of what the machine has; changes no code.
        force: try it even if it cannot fit into memory or on the disk.
        group: the processes that do this together; all see the model and `output` under the same paths, and
            all get the manifest.

    Raises:
        CheckpointError: the model cannot be read or is of an unknown architecture.
        UsageError: a group size does not fit, or there are more processes than samples.
        ResourceError: memory or disk cannot hold it, and nothing was written; or memory ran out on the way.
        CalibrationError: the calibration text is missing or too short.
        QuantizationError: the recipe rotates a model that does not compute the same once it is turned.
        OutputError: `output` is in use, the disk is full, or the interrupted run was another one.
        DistributedError: another process of the group is gone.
        Interrupted: Ctrl-C.
    """
    reader, model, blocks, plan = open_model(recipe)
    task = Task(recipe, reader, model, blocks, plan, group)
    if needs_data(recipe, task.plan.values()):
        refuse_idle(group, recipe.calibration.samples)
    limits = limits or budget()
    needed = estimate(recipe, reader, model, blocks, task.plan, limits)
    manage_heap(ample=needed.is_ample)
    if not group.leads:
        with _compiling(task):
            return _follow(task, limits)
    manifest = None if restart else _finished(output, task)
    if manifest is not None:
        group.share(NO_WALK)
        return group.share(manifest)
    if not force:
        refuse_what_cannot_fit(needed, output)
    with _compiling(task):
        return group.share(_lead(task, output, needed, restart=restart))


def open_model(recipe: Recipe) -> tuple[CheckpointReader, Any, list[Block], Plan]:
    """What a recipe starts from: the model's tensors, turned if it says so, skeleton, blocks and plan.

    Raises:
        CheckpointError: the model cannot be read or is of an unknown architecture.
        UsageError: a group size does not fit.
        RecipeError: rules do not fit the model's layers.
        QuantizationError: the model cannot be rotated.
    """
    reader = CheckpointReader(resolve_model(recipe.model))
    model = build_skeleton(reader)
    blocks = find_blocks(model)
    plan = resolve_schemes(recipe, shapes(blocks))
    if recipe.kv_cache is not None:
        refuse_other_caches(model)
    if recipe.rotation is not None:
        reader = rotated(reader, model, blocks, recipe.rotation)
    return reader, model, blocks, plan


def _compiling(task: Task) -> AbstractContextManager[None]:
    """The kernels compile while text and model are read, where they will be used."""
    wanted = any(planned.needs_data for planned in task.plan.values()) and task.group.device.type == "cpu"
    return kernels.compiling() if wanted else nullcontext()


def _lead(task: Task, output: Path, needed: Estimate, *, restart: bool) -> dict[str, Any]:
    """The process that writes."""
    start, keys = time.monotonic(), [REST, *(block.name for block in task.blocks)]
    with (
        measuring() as split,
        ShardWriter(output, keys, restart=restart) as writer,
        _resumable(writer, task.blocks, needed),
    ):
        calibration = _calibration(task)
        warnings = concerns(calibration, _widest(task)) if calibration else []
        for warning in warnings:
            warn(warning)
        _claim(writer, _identity(task, calibration))
        earlier = _seconds(writer, task.blocks)
        finished = frozenset(filter(writer.done, keys))
        Stack(task, writer, *task.group.share((calibration, writer.partial, finished)), needed.limits).run()
        notes = [writer.notes(block.name) for block in task.blocks]
        totals = account.totals(task.reader, writer, earlier + time.monotonic() - start, split)
        manifest = account.manifest(
            task.recipe, task.reader.stored, calibration, warnings, notes, totals, task.group
        )
        config = account.config(task.reader, task.model, task.plan, task.recipe.kv_cache)
        card = partial(make_card, name=output.resolve().name, source=task.reader.folder)
        writer.finish(config, manifest, task.reader.folder, card=card)
    written: dict[str, Any] = read_json(output / MANIFEST)
    return written


def _follow(task: Task, limits: Budget) -> dict[str, Any]:
    """Every other process."""
    start: Start | str = task.group.share(None)
    if not isinstance(start, str):
        Stack(task, None, *start, limits).run()
    return dict(task.group.share(None))


def _finished(output: Path, task: Task) -> dict[str, Any] | None:
    """The manifest in `output` if that is what this very run would make.

    A process may be killed when all is done but its exit; whoever then gives the same command again, as
    after any other kill, gets what the first one made.
    """
    try:
        made = load_manifest(output)
    except CheckpointError:
        return None
    if made is None or made.recipe != task.recipe.model_dump(mode="json"):
        return None
    calibration = _calibration(task)
    complete = all((output / file).is_file() for file in made.files)
    if not complete or _identity(task, calibration) != Identity.of(made):
        return None
    remove_leftovers(output)
    console.print(f"{output} is finished, nothing is left to do.", highlight=False)
    return made.model_dump(mode="json")


@contextmanager
def _resumable(writer: ShardWriter, blocks: Sequence[Block], needed: Estimate) -> Iterator[None]:
    """Say how to go on after Ctrl-C, and after memory ran out."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"Interrupted after {_how_to_go_on(writer, blocks)}") from None
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines() or ["no more is to be had"]
        raise ResourceError(
            f"Out of memory ({reason[0]}) after {_how_to_go_on(writer, blocks)} {less_memory(needed)}"
        ) from error


def _how_to_go_on(writer: ShardWriter, blocks: Sequence[Block]) -> str:
    finished = sum(writer.done(block.name) for block in blocks)
    kept = f", which are kept in {writer.partial}" if finished else ""
    how = f"The same command {'goes on from there' if finished else 'begins again'}."
    return f"{finished} of {len(blocks)} blocks{kept}. {how}"


def _seconds(writer: ShardWriter, blocks: Sequence[Block]) -> float:
    """Time that the blocks finished so far have taken."""
    return sum(float(writer.notes(block.name)["seconds"]) for block in blocks if writer.done(block.name))


def shapes(blocks: Sequence[Block]) -> dict[str, tuple[int, int]]:
    """Linear layer → (output, input) features."""
    return {
        name: (module.out_features, module.in_features)
        for block in blocks
        for name, module in block.linears().items()
    }


def _widest(task: Task) -> tuple[str, int] | None:
    """Name and input columns of the widest layer whose method looks at data, if there is one."""
    columns = {
        name: columns
        for name, (_, columns) in shapes(task.blocks).items()
        if name in task.plan and task.plan[name].needs_data
    }
    return max(columns.items(), key=lambda item: item[1], default=None)


def calibration_set(
    recipe: Recipe, plan: Plan, model: Any, reader: CheckpointReader
) -> CalibrationSet | None:
    """The calibration tokens; None if nothing looks at data."""
    return (
        calibration_tokens(recipe.calibration, model, reader) if needs_data(recipe, plan.values()) else None
    )


def calibration_tokens(config: CalibrationConfig, model: Any, reader: CheckpointReader) -> CalibrationSet:
    """The calibration tokens.

    Raises:
        CalibrationError: the text is missing or too short, or the tokenizer is another model's.
        CheckpointError: there is no tokenizer.
    """
    calibration = load_calibration(config, load_tokenizer(reader.folder))
    highest, known = int(calibration.tokens.max()), model.get_input_embeddings().num_embeddings
    if highest >= known:
        raise CalibrationError(
            f"The tokenizer in {reader.folder} makes token {highest}, the model knows {known} tokens. "
            "They belong to different models."
        )
    return calibration


def _calibration(task: Task) -> CalibrationSet | None:
    return calibration_set(task.recipe, task.plan, task.model, task.reader)


def _identity(task: Task, calibration: CalibrationSet | None) -> Identity:
    return Identity(
        qdeploy=__version__,
        methods=account.foreign_methods(task.recipe),
        recipe=task.recipe.model_dump(mode="json"),
        model=task.reader.sha256,
        calibration=calibration.sha256 if calibration else None,
    )


def _claim(writer: ShardWriter, identity: Identity) -> None:
    """Make the partial folder this run's own, or refuse one that another run began."""
    found = writer.fingerprint
    if found is None:
        writer.set_fingerprint(identity.to_dict())
        return
    changes = identity.changes(found)
    if changes:
        raise OutputError(
            f"{writer.partial} holds {writer.recorded} shards of an interrupted run, and this one differs: "
            f"{changes}. Give the options of that run to go on with it, --restart to begin again, or another "
            "folder with -o."
        )
