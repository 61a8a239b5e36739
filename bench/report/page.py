"""The page: templates filled with the evidence."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from qdeploy.bench import noise
from qdeploy.bench.load.series.sweep import completion_rate
from qdeploy.bench.report import compare, fidelity, metrics, numbers, places, samples, words
from qdeploy.bench.report.collect import Evidence, Variant, collect
from qdeploy.bench.report.decision import figure_words, standing_words
from qdeploy.bench.report.drawings import draw
from qdeploy.bench.report.plots.rates import beyond_knee, series_words
from qdeploy.errors import UsageError, disk_errors
from qdeploy.files import write_text

FILTERS = (
    numbers.number,
    numbers.milliseconds,
    numbers.size,
    numbers.percent,
    numbers.samples,
    numbers.points,
    numbers.p_value,
    numbers.interval,
    numbers.interval_percent,
    numbers.interval_points,
    places.expectations,
    places.at_most,
    places.visible,
    places.harmless,
    completion_rate,
    beyond_knee,
    series_words,
)


def write_report(paths: Sequence[Path], output: Path) -> list[words.Summary]:
    """Write the report on campaign and run folders to `output`, atomically; returns what it says first.

    Raises:
        ComparisonError: the folders hold no runs, or two of a kind for one model.
        OutputError: `output` cannot be written.
        UsageError: `output` is a folder.
    """
    if output.is_dir():
        raise UsageError(f"{output} is a folder. Give a file, for example -o {output / 'report.html'}.")
    evidence = collect(paths)
    with disk_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, render(evidence))
    return summaries(evidence)


def summaries(evidence: Evidence) -> list[words.Summary]:
    """One summary for each quantized variant."""
    return [words.summarize(variant, evidence.baseline) for variant in evidence.quantized]


def render(evidence: Evidence) -> str:
    """The report as one HTML document that loads nothing from elsewhere and runs nothing.

    Its policy lets a browser apply the page's own style sheet, known by its hash, and nothing else: whatever
    a model wrote, no script can run and no request can be made.
    """
    loader = jinja2.PackageLoader("qdeploy.bench.report")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {filter.__name__: filter for filter in FILTERS}
    environment.filters["yaml"] = _yaml
    style = loader.get_source(environment, "style.css")[0]
    context = _context(evidence) | {"style": Markup(style), "style_hash": _hash(style)}
    return environment.get_template("report.html").render(context)


def _context(evidence: Evidence) -> dict[str, Any]:
    variants, baseline = evidence.variants, evidence.baseline
    return {
        "title": _title(evidence),
        "evidence": evidence,
        "figure_words": figure_words,
        "standing_words": standing_words,
        "variants": variants,
        "baseline": baseline,
        "summaries": summaries(evidence),
        "metrics": metrics.measured(variants),
        "percentile": compare.percentile,
        "significant": compare.significant,
        "doubt": noise.doubt,
        "latency_change": lambda metric, variant: latency_change(metric, variant, baseline),
        "size_factor": lambda variant: words.size_factor(variant, baseline),
        "task_words": words.task_words,
        "fidelity": fidelity,
        "plots": draw(evidence),
        "curve_steps": samples.MOST,
        "commands": _commands(variants),
    }


def latency_change(metric: metrics.Metric, variant: Variant, baseline: Variant | None) -> str:
    """The median against the baseline's; what a table cell says."""
    if variant.is_baseline:
        return "is the baseline"
    return words.change_words(words.median_change(metric, variant, baseline))


def _title(evidence: Evidence) -> str:
    """The 16-bit model's name; a manifest knows it better than the folder that a baseline was served from."""
    checkpoints = [variant.checkpoint for variant in evidence.variants if variant.checkpoint]
    checkpoints.sort(key=lambda checkpoint: checkpoint.manifest is None)
    return checkpoints[0].model if checkpoints else "Deployment report"


def _commands(variants: Sequence[Variant]) -> list[str]:
    """The command lines that made the records, each once, in the order they ran."""
    manifests = [v.checkpoint.manifest for v in variants if v.checkpoint]
    sources = [manifest.provenance for manifest in manifests if manifest]
    sources += [run.provenance for variant in variants for run in variant.runs]
    ordered = sorted(sources, key=lambda source: str(source.get("created", "")))
    return list(dict.fromkeys(source["command"] for source in ordered if source.get("command")))


def _hash(text: str) -> str:
    """As a Content-Security-Policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip()
