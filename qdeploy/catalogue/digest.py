"""The main figures of a run in a line, from its record as JSON: any part of which may be missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qdeploy.files import read_json

Content = dict[str, Any]


def digest(kind: str, content: Content, folder: Path) -> str:
    """The line for a record of this kind; empty where there is nothing to say."""
    parts = PARTS[kind](content, folder) if kind in PARTS else []
    return ", ".join(part for part in parts if part)


def _checkpoint(content: Content, _: Path) -> list[str]:
    modules = content.get("modules", [])
    kinds = dict.fromkeys(f"{module['scheme']} by {module['method']}" for module in modules)
    totals = content.get("totals", {})
    size = f"{totals['output_bytes'] / 1e6:,.0f} MB" if "output_bytes" in totals else ""
    return [*kinds, size]


def _export(content: Content, _: Path) -> list[str]:
    return [str(content.get("scheme", "")), f"for {content.get('engine')} on {content.get('target')}"]


def _bench(content: Content, _: Path) -> list[str]:
    load = content.get("load") or {}
    if not load:
        return []
    at_once, rate = load.get("concurrency"), load.get("rate") or load.get("achieved_rate", 0.0)
    offered = f"{at_once} at a time" if at_once else f"{rate:.3g}/s"
    ttft = _percentile(load, "ttft_ms", 0.5)
    slo = load.get("slo") or {}
    return [
        offered,
        f"{load['output_token_throughput']:.3g} tokens/s",
        "" if ttft is None else f"p50 TTFT {ttft:.3g} ms",
        f"objective {'met' if slo['met'] else 'missed'}" if slo else "",
        "interrupted" if load.get("interrupted") else "",
        "invalid" if load.get("invalid") else "",
    ]


def _eval(content: Content, _: Path) -> list[str]:
    text = content.get("fidelity") or {}
    kl = text.get("kl_lower_bound")
    tasks = [task for task in content.get("tasks", []) if task.get("part_of") is None]
    return [
        f"perplexity {text['perplexity']['value']:.4g}" if text else "",
        f"KL ≥ {kl['value']:.3g}" if kl else "",
        *map(_task, tasks[:2]),
        f"and {len(tasks) - 2} tasks" if len(tasks) > 2 else "",
    ]


def _task(task: Content) -> str:
    return f"{task['task']} {task['accuracy']['value']:.1%} {task.get('verdict') or ''}".strip()


def _verify(content: Content, _: Path) -> list[str]:
    found = content.get("verify") or {}
    return [str(found.get("verdict", "")), f"ratio {found['ratio']:.2f}" if "ratio" in found else ""]


def _campaign(content: Content, folder: Path) -> list[str]:
    states = [step["status"] for variant in content.get("variants", []) for step in variant["steps"].values()]
    done = f"{states.count('done')} of {len(states)} steps done"
    path = folder / "decision.json"
    recommended = read_json(path).get("recommended") if path.is_file() else None
    names = ", ".join(variant["name"] for variant in content.get("variants", []))
    return [names, done, f"recommended {recommended}" if recommended else ""]


def _percentile(load: Content, metric: str, q: float) -> float | None:
    percentiles = load.get("metrics", {}).get(metric, {}).get("percentiles", [])
    return next((p["value"] for p in percentiles if p["q"] == q), None)


PARTS: dict[str, Callable[[Content, Path], list[str]]] = {
    "quantize": _checkpoint,
    "convert": _checkpoint,
    "export": _export,
    "bench": _bench,
    "eval": _eval,
    "verify": _verify,
    "campaign": _campaign,
}
