"""What `qdeploy inspect` shows of a folder, as a tree."""

from __future__ import annotations

from collections.abc import Iterator

from rich.markup import escape
from rich.tree import Tree

from qdeploy.checkpoint.inspection import Inspection
from qdeploy.checkpoint.manifest import Manifest

MEGABYTE = 1_000_000
DIGITS = 12
"""Of a hash, which is enough to tell two apart."""


def overview(found: Inspection) -> Tree:
    """Model and parts, quantization, cache, lineage, and who serves it."""
    tree = Tree(f"[bold]{escape(str(found.folder))}[/]", highlight=False)
    _add_model(tree, found)
    _add_quantization(tree, found)
    if found.kv_cache:
        tree.add(f"Cache: keys and values in FP8, scales for {found.kv_cache} attentions")
    if found.manifest:
        _add(tree, "Lineage", _lineage(found.manifest))
        _add(tree, "Run", _run(found.manifest))
        for warning in found.manifest.warnings:
            tree.add(f"[yellow]Warning:[/] {escape(warning)}")
    _add(tree, "Served by", found.served_by or ["no engine"])
    return tree


def _add(tree: Tree, title: str, lines: Iterator[str] | list[str]) -> None:
    branch = tree.add(title)
    for line in lines:
        branch.add(escape(line))


def _add_model(tree: Tree, found: Inspection) -> None:
    files = f"{found.files} {'file' if found.files == 1 else 'files'}"
    branch = tree.add(
        f"Model: {escape(found.architecture)}, {found.parameters / 1e6:.1f} M parameters, "
        f"{found.bytes / MEGABYTE:.1f} MB in {files}"
    )
    for part, size in found.bytes_by_part.items():
        branch.add(f"{part}: {size / MEGABYTE:.1f} MB ({size / found.bytes:.1%})")


def _add_quantization(tree: Tree, found: Inspection) -> None:
    if not found.schemes:
        tree.add(f"Quantization: none, {escape(found.dtype)}")
        return
    branch = tree.add(f"Quantization: {found.format}, {found.bits_per_weight:.2f} bits per weight over all")
    for use in found.schemes:
        branch.add(f"{escape(use.scheme)}: {use.modules} layers, {use.bits_per_weight:.2f} bits per weight")


def _lineage(manifest: Manifest) -> Iterator[str]:
    """From the 16-bit model to this folder; each hash is of the folder that the step began with."""
    model, totals = manifest.model, manifest.totals
    smaller = totals.source_bytes / max(totals.output_bytes, 1)
    yield f"{model.source}, sha256 {model.sha256[:DIGITS]}"
    yield f"quantized, {smaller:.2f}× smaller, recipe sha256 {manifest.recipe_sha256[:DIGITS]}"
    for step in manifest.conversions:
        rounded = f", {step.rounded_scales} scales rounded" if step.rounded_scales else ""
        yield f"{step.source}, sha256 {step.sha256[:DIGITS]} → {step.target}{rounded}"


def _run(manifest: Manifest) -> Iterator[str]:
    """How it was quantized."""
    made, calibration = manifest.provenance, manifest.calibration
    if calibration:
        parts = [f"{part.source} ({part.samples})" for part in calibration.parts]
        text = ", ".join(parts) if len(parts) > 1 else calibration.source
        yield (
            f"calibration: {calibration.samples} × {calibration.sequence_length} tokens of {text}, "
            f"seed {calibration.seed}, sha256 {calibration.sha256[:DIGITS]}"
        )
    yield f"made {made.get('created', 'unknown')} in {manifest.totals.seconds:.0f} s"
    packages = {"qdeploy": made.get("qdeploy"), **made.get("packages", {})}
    yield "versions: " + ", ".join(f"{name} {number}" for name, number in packages.items())
