"""Campaign folders of records with known answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from qdeploy.bench.load.figures.early_stopping import verdict
from qdeploy.bench.plan import Plan, load_plan
from qdeploy.bench.records import Estimate, LimitResult, LoadResult, SloResult
from qdeploy.files import write_json
from tests.bench.compare.conftest import SETTINGS, answered, write_eval
from tests.bench.report.conftest import checkpoint, load_result, record

SLO = "p90_ttft=500ms"
REQUESTS = 60
KEPT, OPEN, BROKEN = 0, 4, 30
"""Requests of 60 over a p90: shown to be kept, undecided, shown to be broken."""

Rates = Mapping[float, int]
"""Rate in requests/s → how many of the requests were over the limit."""


def slo_load(rate: float, over: int, **changes: Any) -> LoadResult:
    """A run at `rate` of which `over` requests broke the limit."""
    load = load_result(10.0, REQUESTS)
    found = verdict(over, REQUESTS, 0.9)
    limit = LimitResult(limit=SLO, requests=REQUESTS, over=over, bound_ms=None, verdict=found)
    load.slo = SloResult(
        limits=[limit],
        met=over <= 0.1 * REQUESTS,
        verdict=found,
        good_share=Estimate(value=1 - over / REQUESTS),
        goodput=Estimate(value=rate),
    )
    load.request_throughput = rate
    return load.model_copy(update={"rate": rate, **changes})


def write_variant(
    campaign: Path,
    name: str,
    rates: Rates,
    lost: int = 0,
    items: int = 4000,
    megabytes: int = 100,
    **changes: Any,
) -> None:
    """A variant's runs: at `rates`, the plan's own first, and an evaluation with `lost` items more wrong."""
    folder = campaign / "variants" / name
    quantized = name != "baseline"
    checkpoint(folder / "checkpoint", quantized)
    (folder / "checkpoint" / "model.safetensors").write_bytes(bytes(megabytes * 1000))
    write_eval(folder / "eval", answered("task", items, range(items // 5 + lost)))
    own, *others = rates
    places = {own: folder / "bench"} | {rate: folder / "rates" / f"{rate:g}" for rate in others}
    for rate, place in places.items():
        place.mkdir(parents=True)
        load = slo_load(rate, rates[rate], **changes)
        record("bench", name, quantized, settings=SETTINGS, load=load).save(place)


def write_campaign(campaign: Path, **variants: dict[str, Any]) -> Path:
    """A campaign whose baseline keeps the objective at 1 request/s and not at 2."""
    given = {"baseline": {"rates": {1.0: KEPT, 2.0: BROKEN}, "megabytes": 300}} | variants
    entries = []
    for name, parts in given.items():
        write_variant(campaign, name, **parts)
        kind = "baseline" if name == "baseline" else "quantized"
        entries.append({"name": name, "kind": kind, "checkpoint": f"variants/{name}/checkpoint"})
    write_json(campaign / "campaign.json", {"plan_text": "model: m\n", "variants": entries})
    return campaign


def plan_of(folder: Path, objective: Mapping[str, Any] | None = None, **load: Any) -> Plan:
    """The plan of such a campaign."""
    fields = {
        "model": "m",
        "variants": [{"name": "any"}],
        "load": {"rate": 1.0, "requests": REQUESTS, "slo": SLO} | load,
        "eval": {"text": None, "tasks": ["smoke"]},
        "objective": dict(objective or {}),
    }
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(fields))
    return load_plan(path)
