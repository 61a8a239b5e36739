"""What a run leaves behind about itself: the layers' notes, the totals, qdeploy.json and config.json."""

from __future__ import annotations

import math
import resource
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from qdeploy import registry
from qdeploy.calibration import CalibrationSet
from qdeploy.checkpoint.manifest import Calibration, CalibrationPart, Manifest, Model, Module, Totals
from qdeploy.checkpoint.writer import ShardWriter
from qdeploy.distributed import Group
from qdeploy.fingerprint import fingerprint
from qdeploy.formats.compressed_tensors import quantization_config
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.modeling.experts import matrices
from qdeploy.modeling.products import product_dtype
from qdeploy.planned import Plan
from qdeploy.provenance import provenance
from qdeploy.recipe import Recipe
from qdeploy.solved import Solved


def note(name: str, solved: Solved, plan: Plan) -> dict[str, Any]:
    """The layer's entry in the manifest."""
    planned = plan[name]
    solution = solved.solution
    return {
        "name": name,
        "scheme": planned.scheme.describe() + (", reference" if planned.without_kernel else ""),
        "method": planned.method,
        "shape": list(solution.quantized.shape),
        "bits": round(solution.quantized.bits, 3),
        "without_kernel": planned.without_kernel,
        "relative_error": solution.relative_error,
        "damp": solution.damp,
        "fallback": solution.fallback,
        "tokens": solved.tokens,
        "seconds": round(solved.seconds, 4),
        "fingerprint": fingerprint(solution.quantized),
    }


def config(
    reader: CheckpointReader, model: nn.Module, plan: Plan, kv_cache: str | None = None
) -> dict[str, Any]:
    """config.json with the block that tells engines what is quantized and how."""
    schemes = {name: planned.scheme for name, planned in plan.items() if planned.without_kernel is None}
    if not schemes:
        return dict(reader.config)
    kept = [name for name in matrices(model) if name not in schemes]
    return {**reader.config, "quantization_config": quantization_config(schemes, kept, kv_cache=kv_cache)}


def totals(
    reader: CheckpointReader, writer: ShardWriter, seconds: float, split: Mapping[str, float]
) -> Totals:
    """What the run took; `split` is of this process alone, without what an interrupted one did."""
    return Totals(
        source_bytes=sum(file.stat().st_size for file in reader.files),
        output_bytes=writer.bytes,
        seconds=round(seconds, 1),
        split={name: round(spent, 3) for name, spent in split.items()},
        peak_rss_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )


def manifest(
    recipe: Recipe,
    reader: CheckpointReader,
    calibration: CalibrationSet | None,
    warnings: list[str],
    notes: Sequence[Mapping[str, Any]],
    totals: Totals,
    group: Group,
) -> dict[str, Any]:
    """The content of qdeploy.json; `notes` are those of the blocks."""
    modules = [module for block in notes for module in block["modules"]]
    content = Manifest(
        provenance={
            **provenance(),
            "methods": foreign_methods(recipe),
            "processes": group.world,
            # On this machine; an interrupted run may have been on another.
            "products": str(product_dtype(group.device)).removeprefix("torch."),
        },
        recipe=recipe.model_dump(mode="json"),
        recipe_sha256=recipe.sha256(),
        calibration=_seen(calibration) if calibration else None,
        model=_model(recipe, reader),
        serving="reference" if any(module["without_kernel"] for module in modules) else "native",
        warnings=warnings,
        modules=[Module(**module) for module in modules],
        kv_cache={name: scales for block in notes for name, scales in block["kv_cache"].items()},
        totals=totals,
    )
    return content.model_dump(mode="json")


def foreign_methods(recipe: Recipe) -> dict[str, str]:
    """Methods of the recipe that other packages bring → package and version."""
    names = sorted({stage.method for rule in recipe.rules for stage in rule.stages})
    origins = {name: registry.origin("methods", name) for name in names}
    return {name: origin for name, origin in origins.items() if not origin.startswith("qdeploy ")}


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
