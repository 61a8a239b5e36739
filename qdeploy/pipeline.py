"""The walk over a model: one block at a time from the 16-bit checkpoint to the packed one.

A block is materialized, quantized, run quantized to make the next block's inputs, packed, written as a shard
and freed; the model is never whole in memory. A run that was stopped goes on after its last finished shard.
"""

from __future__ import annotations

import math
import resource
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qdeploy import __version__
from qdeploy.calibration import CalibrationSet
from qdeploy.calibration import load as load_calibration
from qdeploy.calibration.adequacy import concerns
from qdeploy.checkpoint.manifest import (
    MANIFEST,
    Calibration,
    CalibrationPart,
    Manifest,
    Model,
    Module,
    Totals,
)
from qdeploy.checkpoint.writer import ShardWriter
from qdeploy.errors import CalibrationError, CheckpointError, Interrupted, OutputError
from qdeploy.files import read_json
from qdeploy.fingerprint import fingerprint
from qdeploy.formats.compressed_tensors import pack, quantization_config, unpack
from qdeploy.methods.base import needs_hessian
from qdeploy.modeling.activations import Activations
from qdeploy.modeling.blocks import Block, find_blocks
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.modeling.hub import resolve_model
from qdeploy.modeling.inputs import BlockCall, embed, record_calls
from qdeploy.modeling.skeleton import build_skeleton, finite, materialize, materialize_buffers, release
from qdeploy.progress import progress, warn
from qdeploy.provenance import provenance
from qdeploy.recipe import Recipe, resolve_schemes
from qdeploy.walk import Plan, Solved, propagate, quantize_with_data, quantize_without_data, set_weight

REST = "rest"
"""Key of the shard with what is in no block: embeddings, final norm, head."""


def quantize(recipe: Recipe, output: Path, *, restart: bool = False) -> dict[str, Any]:
    """Quantize the recipe's model into the folder `output` and return the manifest written there.

    Linear layers that the recipe quantizes are packed as compressed-tensors; every other tensor keeps its
    bytes. Work in progress is kept in `OUTPUT.partial`, and the same call resumes it.

    Args:
        recipe: what to do to which layers.
        output: folder to make.
        restart: throw away what an interrupted run left.

    Raises:
        CheckpointError: the model cannot be read or is of an unknown architecture.
        UsageError: a group size does not fit.
        CalibrationError: the calibration text is missing or too short.
        OutputError: `output` is in use, the disk is full, or the interrupted run was another one.
        Interrupted: Ctrl-C.
    """
    start = time.monotonic()
    reader = CheckpointReader(resolve_model(recipe.model))
    model = build_skeleton(reader)
    blocks = find_blocks(model)
    plan = resolve_schemes(recipe, _shapes(blocks))
    with ShardWriter(output, restart=restart) as writer, _resumable(writer, blocks):
        calibration = _calibration(recipe, plan, model, reader)
        warnings = concerns(calibration, _widest(blocks, plan)) if calibration else []
        for warning in warnings:
            warn(warning)
        _claim(writer, _identity(recipe, reader, calibration))
        earlier = _seconds(writer, blocks)
        _Walk(recipe, reader, model, blocks, plan, calibration, writer).run()
        modules = [note for block in blocks for note in writer.notes(block.name)["modules"]]
        seconds = earlier + time.monotonic() - start
        manifest = _manifest(recipe, reader, calibration, warnings, modules, _totals(reader, writer, seconds))
        writer.finish(_config(reader, model, plan), manifest, reader.folder)
    written: dict[str, Any] = read_json(output / MANIFEST)
    return written


@contextmanager
def _resumable(writer: ShardWriter, blocks: Sequence[Block]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        finished = sum(writer.done(block.name) for block in blocks)
        kept = (
            f", which are kept in {writer.partial}. The same command goes on from there" if finished else ""
        )
        raise Interrupted(f"Interrupted after {finished} of {len(blocks)} blocks{kept}.") from None


def _seconds(writer: ShardWriter, blocks: Sequence[Block]) -> float:
    """Time that the blocks finished so far have taken."""
    return sum(float(writer.notes(block.name)["seconds"]) for block in blocks if writer.done(block.name))


def _shapes(blocks: Sequence[Block]) -> dict[str, tuple[int, int]]:
    return {
        name: (module.out_features, module.in_features)
        for block in blocks
        for name, module in block.linears().items()
    }


def _widest(blocks: Sequence[Block], plan: Plan) -> tuple[str, int]:
    """Name and input columns of the widest layer whose method looks at data."""
    columns = {
        name: columns
        for name, (_, columns) in _shapes(blocks).items()
        if name in plan and needs_hessian(plan[name][1])
    }
    widest = max(columns, key=lambda name: columns[name])
    return widest, columns[widest]


def _calibration(recipe: Recipe, plan: Plan, model: Any, reader: CheckpointReader) -> CalibrationSet | None:
    """The calibration tokens; None if no method looks at data."""
    if not any(needs_hessian(config) for _, config in plan.values()):
        return None
    calibration = load_calibration(recipe.calibration, _tokenizer(reader.folder))
    highest, known = int(calibration.tokens.max()), model.get_input_embeddings().num_embeddings
    if highest >= known:
        raise CalibrationError(
            f"The tokenizer in {reader.folder} makes token {highest}, the model knows {known} tokens. "
            "They belong to different models."
        )
    return calibration


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} has no tokenizer that transformers can load ({str(error).splitlines()[0]}). "
            "Add the model's tokenizer.json and tokenizer_config.json."
        ) from error


def _identity(recipe: Recipe, reader: CheckpointReader, calibration: CalibrationSet | None) -> dict[str, Any]:
    """All that a block's codes depend on; blocks of two runs may be mixed only if it is the same."""
    return {
        "qdeploy": __version__,
        "recipe": recipe.sha256(),
        "model": reader.sha256,
        "calibration data": calibration.sha256 if calibration else None,
    }


def _claim(writer: ShardWriter, identity: Mapping[str, Any]) -> None:
    """Make the partial folder this run's own, or refuse one that another run began."""
    found = writer.fingerprint
    if found is None:
        writer.set_fingerprint(identity)
        return
    changed = [part for part, value in identity.items() if found.get(part) != value]
    if changed:
        raise OutputError(
            f"{writer.partial} holds {len(writer.keys)} shards of an interrupted run with another "
            f"{' and another '.join(changed)}. Give the options of that run to go on with it, --restart to "
            "begin again, or another folder with -o."
        )


@dataclass
class _Walk:
    """One run: what `quantize` has gathered, and the writer that knows what is already finished."""

    recipe: Recipe
    reader: CheckpointReader
    model: Any
    blocks: list[Block]
    plan: Plan
    calibration: CalibrationSet | None
    writer: ShardWriter

    def __post_init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @torch.no_grad()
    def run(self) -> None:
        """Write every shard that is not there yet."""
        if not self.writer.done(REST):
            self.writer.add_shard(REST, self._rest())
        last = self._last_with_data()
        with progress("Quantizing", len(self.blocks)) as task:
            task.note("embedding the calibration samples")
            calls, activations = self._start() if last is not None else ([], None)
            for position, block in enumerate(self.blocks):
                task.note(block.name)
                if activations is None or last is None or position > last:
                    self._without_data(block)
                else:
                    self._with_data(calls[position], activations, is_last=position == last)
                task.advance()

    def _last_with_data(self) -> int | None:
        """Position of the last unfinished block that needs its inputs; no block runs after it."""
        wanting = [
            position
            for position, block in enumerate(self.blocks)
            if not self.writer.done(block.name)
            and any(needs_hessian(self.plan[name][1]) for name in block.linears() if name in self.plan)
        ]
        return wanting[-1] if wanting else None

    def _start(self) -> tuple[list[BlockCall], Activations]:
        assert self.calibration is not None
        inside = {name for block in self.blocks for name in block.parameters}
        outside = [name for name, _ in self.model.named_parameters() if name not in inside]
        tokens, folder = self.calibration.tokens, self.writer.partial
        materialize_buffers(self.model, self.device)
        materialize(self.model, outside, self.reader, self.device)
        calls = record_calls(self.model, self.blocks, tokens, self.device)
        activations = embed(self.model, self.blocks, tokens, self.device, folder)
        release(self.model, outside)
        return calls, activations

    def _with_data(self, call: BlockCall, activations: Activations, *, is_last: bool) -> None:
        start = time.monotonic()
        block = call.block
        materialize(self.model, block.parameters, self.reader, self.device)
        if self.writer.done(block.name):
            self._restore(block)
            propagate(call, activations)
        else:
            sequential = self.recipe.true_sequential
            solved = quantize_with_data(
                call, activations, self.plan, true_sequential=sequential, outputs=not is_last
            )
            self._write(block, solved, start)
        release(self.model, block.parameters)

    def _without_data(self, block: Block) -> None:
        if self.writer.done(block.name):
            return
        start = time.monotonic()
        materialize(self.model, block.parameters, self.reader, self.device)
        self._write(block, quantize_without_data(block, self.plan), start)
        release(self.model, block.parameters)

    def _restore(self, block: Block) -> None:
        """Put the weights of a finished shard in place."""
        tensors = self.writer.load(block.name)
        for name, module in block.linears().items():
            if name in self.plan:
                packed = {
                    key.removeprefix(f"{name}."): t for key, t in tensors.items() if _owner(key) == name
                }
                set_weight(module, unpack(packed, self.plan[name][0]).dequantize())

    def _write(self, block: Block, solved: Mapping[str, Solved], start: float) -> None:
        tensors: dict[str, Tensor] = {}
        for name in self._source_names(block.name):
            owner = _owner(name)
            if owner in solved and name == f"{owner}.weight":
                packed = pack(solved[owner].solution.quantized)
                tensors.update({f"{owner}.{suffix}": tensor.cpu() for suffix, tensor in packed.items()})
            else:
                tensors[name] = self.reader.get(name)
        notes = [_note(name, found, self.plan) for name, found in solved.items()]
        seconds = round(time.monotonic() - start, 3)
        self.writer.add_shard(block.name, tensors, {"modules": notes, "seconds": seconds})

    def _rest(self) -> dict[str, Tensor]:
        inside = {name for block in self.blocks for name in self._source_names(block.name)}
        return {name: finite(name, self.reader) for name in self.reader.names if name not in inside}

    def _source_names(self, block: str) -> list[str]:
        return [name for name in self.reader.names if name.startswith(f"{block}.")]


def _owner(tensor: str) -> str:
    """The module that a tensor belongs to."""
    return tensor.rpartition(".")[0]


def _note(name: str, solved: Solved, plan: Plan) -> dict[str, Any]:
    """The layer's entry in the manifest."""
    scheme, config = plan[name]
    solution = solved.solution
    return {
        "name": name,
        "scheme": scheme.describe(),
        "method": type(config).__name__.lower(),
        "shape": list(solution.quantized.codes.shape),
        "relative_error": solution.relative_error,
        "damp": solution.damp,
        "fallback": solution.fallback,
        "seconds": round(solved.seconds, 4),
        "fingerprint": fingerprint(solution.quantized),
    }


def _config(reader: CheckpointReader, model: nn.Module, plan: Plan) -> dict[str, Any]:
    """config.json with the block that tells engines what is quantized and how."""
    schemes = {name: scheme for name, (scheme, _) in plan.items()}
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    kept = [name for name in linears if name not in schemes]
    return {**reader.config, "quantization_config": quantization_config(schemes, kept)}


def _totals(reader: CheckpointReader, writer: ShardWriter, seconds: float) -> Totals:
    return Totals(
        source_bytes=sum(file.stat().st_size for file in reader.files),
        output_bytes=sum(file.stat().st_size for file in writer.partial.glob("*.safetensors")),
        seconds=round(seconds, 1),
        peak_rss_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )


def _manifest(
    recipe: Recipe,
    reader: CheckpointReader,
    calibration: CalibrationSet | None,
    warnings: list[str],
    modules: Sequence[Mapping[str, Any]],
    totals: Totals,
) -> dict[str, Any]:
    manifest = Manifest(
        provenance=provenance(),
        recipe=recipe.model_dump(mode="json"),
        recipe_sha256=recipe.sha256(),
        calibration=_seen(calibration) if calibration else None,
        model=_model(recipe, reader),
        warnings=warnings,
        modules=[Module(**module) for module in modules],
        totals=totals,
    )
    return manifest.model_dump(mode="json")


def _seen(calibration: CalibrationSet) -> Calibration:
    return Calibration(
        source=calibration.source,
        parts=[CalibrationPart(**asdict(part)) for part in calibration.parts],
        sha256=calibration.sha256,
        samples=calibration.samples,
        sequence_length=calibration.sequence_length,
        seed=calibration.seed,
    )


def _model(recipe: Recipe, reader: CheckpointReader) -> Model:
    sizes: Counter[str] = Counter()
    for name in reader.names:
        sizes[str(reader.dtype(name)).removeprefix("torch.")] += math.prod(reader.shape(name))
    return Model(
        source=recipe.model,
        sha256=reader.sha256,
        architecture=(reader.config.get("architectures") or ["unknown"])[0],
        model_type=reader.config["model_type"],
        parameters=sizes.total(),
        dtype=sizes.most_common(1)[0][0],
    )
