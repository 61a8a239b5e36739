"""From folders to what the report shows: one Variant per served model, the baseline first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qdeploy.bench.records import (
    SERIES,
    Decision,
    Engine,
    RunRecord,
    SeriesRecord,
    load_decision,
    load_record,
    load_series,
)
from qdeploy.bench.report.checkpoint import Checkpoint, read_checkpoint
from qdeploy.errors import ComparisonError
from qdeploy.files import read_json

KINDS = ("bench", "eval", "verify")


@dataclass(frozen=True)
class Variant:
    """One served model and all that was measured on it; what was not is None.

    `requests` is the table of the load run's requests, `series` the runs at several rates.
    """

    name: str
    is_baseline: bool = False
    checkpoint: Checkpoint | None = None
    export: dict[str, Any] = field(default_factory=dict)
    bench: RunRecord | None = None
    eval: RunRecord | None = None
    verify: RunRecord | None = None
    requests: Path | None = None
    series: SeriesRecord | None = None

    @property
    def runs(self) -> list[RunRecord]:
        return [run for run in (self.bench, self.eval, self.verify) if run]

    @property
    def engine(self) -> Engine | None:
        return next((run.engine for run in self.runs), None)


@dataclass(frozen=True)
class Evidence:
    """All that one report is about."""

    variants: list[Variant]
    plan: str | None = None
    decisions: list[Decision] = field(default_factory=list)

    @property
    def baseline(self) -> Variant | None:
        return next((variant for variant in self.variants if variant.is_baseline), None)

    @property
    def quantized(self) -> list[Variant]:
        return [variant for variant in self.variants if not variant.is_baseline]


def collect(paths: Sequence[Path]) -> Evidence:
    """Read campaign and run folders.

    Raises:
        ComparisonError: a folder is neither; the same model has two of a kind; there is nothing to show.
    """
    variants: list[Variant] = []
    plans: list[str] = []
    decisions: list[Decision] = []
    loose: list[Path] = []
    for path in paths:
        if (path / "campaign.json").is_file():
            campaign = read_json(path / "campaign.json")
            variants += [_campaign_variant(path, entry) for entry in campaign["variants"]]
            plans.append(campaign["plan_text"])
            decisions += filter(None, [load_decision(path)])
        else:
            loose.append(path)
    variants += _group(loose)
    if not any(variant.runs or variant.series for variant in variants):
        raise ComparisonError(
            f"Nothing was measured yet in {', '.join(map(str, paths))}: no variant has a finished run."
        )
    variants.sort(key=lambda variant: not variant.is_baseline)
    return Evidence(variants, "\n---\n".join(plans) or None, decisions)


def _campaign_variant(campaign: Path, entry: dict[str, Any]) -> Variant:
    folder = campaign / "variants" / entry["name"]
    runs: dict[str, Any] = {k: load_record(folder / k) for k in KINDS if (folder / k / "run.json").is_file()}
    export = folder / "deploy" / "export.json"
    return Variant(
        name=entry["name"],
        is_baseline=entry["kind"] == "baseline",
        checkpoint=read_checkpoint(campaign / entry["checkpoint"]),
        export=read_json(export) if export.is_file() else {},
        requests=_requests(folder / "bench"),
        series=next((load_series(path.parent) for path in sorted(folder.glob(f"*/{SERIES}"))), None),
        **runs,
    )


def _requests(run: Path) -> Path | None:
    table = run / "requests.parquet"
    return table if table.is_file() else None


def _group(folders: Sequence[Path]) -> list[Variant]:
    """Folders of runs and series given one by one, joined by the checkpoint (or model name) they measured."""
    variants: dict[str, Variant] = {}
    for folder in folders:
        record, part = _loose_part(folder)
        key = record.engine.checkpoint or record.engine.model
        variant = variants.get(key) or _loose_variant(record)
        if taken := next((kind for kind in part if getattr(variant, kind) is not None), None):
            what = "series" if taken == "series" else f"{taken} run"
            raise ComparisonError(
                f"{folder} is a second {what} of {key}. A report shows one of each kind: leave one out."
            )
        variants[key] = replace(variant, **part)
    return _with_one_baseline(list(variants.values()))


def _loose_part(folder: Path) -> tuple[RunRecord, dict[str, Any]]:
    """A record that names what was measured in `folder`, and what of a Variant is in it."""
    if (folder / SERIES).is_file():
        runs = sorted(folder.glob("*/run.json"))
        if not runs:
            raise ComparisonError(
                f"{folder} holds a series without its runs: give the folder that was written."
            )
        return load_record(runs[0].parent), {"series": load_series(folder)}
    record = load_record(folder)
    part: dict[str, Any] = {record.kind: record}
    if record.kind == "bench":
        part["requests"] = _requests(folder)
    return record, part


def _loose_variant(record: RunRecord) -> Variant:
    checkpoint = read_checkpoint(Path(record.engine.checkpoint)) if record.engine.checkpoint else None
    return Variant(name=record.engine.model, checkpoint=checkpoint)


def _with_one_baseline(variants: list[Variant]) -> list[Variant]:
    """Mark the first model that is served unquantized and was not itself compared with another."""
    for index, variant in enumerate(variants):
        compared = variant.eval is not None and variant.eval.baseline is not None
        quantized = any(run.engine.quantization for run in variant.runs)
        if len(variants) > 1 and not compared and not quantized:
            variants[index] = replace(variant, is_baseline=True)
            break
    return variants
