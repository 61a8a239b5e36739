"""README.md of a checkpoint folder: what it is, how it was made, how to serve it, as the hub reads it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from qdeploy.checkpoint.inspection import Inspection, inspect_checkpoint
from qdeploy.checkpoint.manifest import MANIFEST, Manifest

CARD = "README.md"
MEGABYTE = 1_000_000
LICENCE = ("license", "license_name", "license_link")
"""Fields of a card that stay true of what is made from a model."""

CACHED = re.compile(r"models--([\w.-]+)--([\w.-]+)")
"""The hub's cache has a folder of this name for a model."""


def make_card(folder: Path, *, name: str, source: Path, commands: Sequence[str] | None = None) -> str:
    """The card of `folder`, in which all else is in its place.

    Args:
        folder: under whatever name it is being made.
        name: that it will have.
        source: the folder that it was made from, whose own card tells licence and base model.
        commands: that serve it, where an export made it for an engine.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    found, told = inspect_checkpoint(folder), front_matter(source)
    base = base_model_of(found.manifest, told, (source / MANIFEST).is_file())
    return model_card(found, name, base, {field: told[field] for field in LICENCE if field in told}, commands)


def front_matter(folder: Path) -> dict[str, Any]:
    """The fields at the head of a folder's card; none where there is no card, or another kind of one."""
    path = folder / CARD
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    head = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        fields = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError:
        fields = None
    return fields if isinstance(fields, dict) else {}


def base_model_of(manifest: Manifest | None, told: Mapping[str, Any], ours: bool) -> str | None:
    """The 16-bit model: what the source's card says where the source is itself made from it."""
    known = told.get("base_model")
    if isinstance(known, str) and (ours or manifest is None):
        return known
    if manifest is None:
        return None
    path = Path(manifest.model.source).expanduser()
    cached = CACHED.search(manifest.model.source)
    if cached:
        return f"{cached[1]}/{cached[2]}"
    return path.resolve().name if path.is_dir() else manifest.model.source


def model_card(
    found: Inspection,
    name: str,
    base_model: str | None,
    licence: Mapping[str, Any],
    commands: Sequence[str] | None = None,
) -> str:
    """The card's text.

    Args:
        found: what is in the folder.
        name: of the folder.
        base_model: the 16-bit model's hub id, or its folder's name; None where nothing tells.
        licence: fields of LICENCE.
        commands: that serve the folder; None for those that take any folder.
    """
    head = yaml.safe_dump(_fields(found, base_model, licence), sort_keys=False, allow_unicode=True)
    sections = [
        f"---\n{head}---",
        f"# {name}",
        " ".join(_summary(found, base_model)),
        "## What is in it",
        _table(("scheme", "layers", "bits per weight"), _schemes(found)) if found.schemes else None,
        _table(
            ("part", "MB"), ((part, f"{size / MEGABYTE:.1f}") for part, size in found.bytes_by_part.items())
        ),
        "## How it was made" if found.manifest else None,
        *(_making(found.manifest) if found.manifest else ()),
        "## How to serve it",
        f"Who can: {', '.join(found.served_by) or 'no engine that is known'}.",
        _code(commands if commands is not None else _serving(found, name)),
        "## Is it whole",
        _code(["sha256sum -c SHA256SUMS"]),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _fields(found: Inspection, base_model: str | None, licence: Mapping[str, Any]) -> dict[str, Any]:
    names = dict.fromkeys(use.scheme.split()[0].lower() for use in found.schemes)
    methods = sorted({module.method for module in found.manifest.modules}) if found.manifest else []
    runs = any(who.startswith("transformers") for who in found.served_by)
    fields: dict[str, Any] = {"base_model": base_model} if base_model else {}
    if base_model and found.schemes:
        fields["base_model_relation"] = "quantized"
    fields["library_name"] = "transformers" if runs else "tensorrt-llm"
    if found.architecture.endswith("ForCausalLM"):
        fields["pipeline_tag"] = "text-generation"
    fields["tags"] = list(dict.fromkeys(["qdeploy", *filter(None, [found.format]), *names, *methods]))
    if found.schemes:
        fields["quantization"] = [use.scheme for use in found.schemes]
    return fields | dict(licence)


def _summary(found: Inspection, base_model: str | None) -> Iterator[str]:
    model = base_model or found.architecture
    if not found.schemes:
        yield f"{model}, {found.parameters / 1e6:.1f} M parameters, in 16 bits."
        return
    by = f" by qdeploy {found.manifest.provenance.get('qdeploy', '')}".rstrip() if found.manifest else ""
    yield f"{model}, {found.parameters / 1e6:.1f} M parameters, quantized{by} and stored as {found.format}:"
    size = f"{found.bytes / MEGABYTE:.1f} MB, {found.bits_per_weight:.2f} bits per weight"
    yield size + (f", where the 16-bit model has {_before(found.manifest)}." if found.manifest else ".")
    if found.kv_cache:
        yield f"Keys and values are cached in FP8, with scales for {found.kv_cache} attentions."
    if found.manifest and found.manifest.serving == "reference":
        yield "Layers that engines have no kernel for are stored dequantized: for studies of accuracy alone."


def _before(manifest: Manifest) -> str:
    return f"{manifest.totals.source_bytes / MEGABYTE:.1f} MB"


def _schemes(found: Inspection) -> Iterator[tuple[str, str, str]]:
    for use in found.schemes:
        yield use.scheme, str(use.modules), f"{use.bits_per_weight:.2f}"


def _making(manifest: Manifest) -> Iterator[str]:
    """Methods, calibration, what was warned about, and what was done since."""
    methods = Counter(module.method for module in manifest.modules)
    lines = [f"- Method: {', '.join(f'{name} ({count} layers)' for name, count in methods.items())}."]
    calibration = manifest.calibration
    if calibration:
        lines.append(
            f"- Calibrated on {calibration.samples} × {calibration.sequence_length} tokens of "
            f"{', '.join(part.source for part in calibration.parts) or calibration.source}, seed "
            f"{calibration.seed} (SHA-256 {calibration.sha256})."
        )
    lines += [f"- Warned: {warning}" for warning in manifest.warnings]
    lines.append(f"- From a model whose config and weights have the SHA-256 {manifest.model.sha256}.")
    lines += [
        f"- Converted from {step.source} (SHA-256 {step.sha256}) to {step.target}"
        + (f", {step.rounded_scales} scales rounded." if step.rounded_scales else ", nothing rounded.")
        for step in manifest.conversions
    ]
    yield "\n".join(lines)
    yield f"Recipe, versions and the error of every layer are in {MANIFEST}: `qdeploy inspect` shows them."


def _serving(found: Inspection, name: str) -> list[str]:
    if any(who.startswith("vLLM") for who in found.served_by):
        return [f"qdeploy serve {name}"]
    if "TensorRT-LLM" in found.served_by:
        return [f"qdeploy export {name} --engine tensorrt-llm -o DEPLOY", "DEPLOY/serve.sh"]
    return []


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(lines: Sequence[str]) -> str | None:
    return "```\n" + "\n".join(lines) + "\n```" if lines else None
