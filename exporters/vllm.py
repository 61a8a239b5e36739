"""Export for vLLM: check what its loader would check, link the files, write how to start it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

from qdeploy.checkpoint.folder import refuse_used
from qdeploy.checkpoint.manifest import load_manifest
from qdeploy.errors import disk_errors
from qdeploy.exporters import checks, parallel
from qdeploy.exporters import reference as dequantized
from qdeploy.exporters.base import ExportReport, Finding, refuse_errors
from qdeploy.exporters.cache import check_cache
from qdeploy.exporters.description import describe
from qdeploy.exporters.kernels import VLLM, choose
from qdeploy.exporters.launch import engine_arguments, write_launch_files
from qdeploy.exporters.layers import FusedLayer, Layer, per_device, read_layers
from qdeploy.exporters.linking import link_model
from qdeploy.exporters.targets import Target, find_target
from qdeploy.files import fsync_folder, write_json
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.schemes import Scheme
from qdeploy.support import Support


class VllmExporter:
    """Compressed-tensors and 16-bit folders for vLLM, whose files need no change."""

    name = "vllm"

    def export(
        self,
        source: Path,
        output: Path,
        *,
        gpu: str = "auto",
        tensor_parallel: int = 1,
        reference: bool = False,
    ) -> ExportReport:
        """Check `source` for the target and write `output`: its files as hard links, and how to start vLLM.

        Args:
            gpu: a name out of `targets.TARGETS`, or "auto".
            tensor_parallel: devices that the model is split over.
            reference: dequantize layers that have no kernel there, and take those that are.

        Raises:
            UsageError: unknown GPU, or a degree of parallelism below one.
            CheckpointError: `source` is not a readable checkpoint.
            ExportError: vLLM would refuse it; nothing is written.
            OutputError: `output` is not empty, or the disk refuses.
        """
        refuse_used(output)
        target = find_target(gpu, tensor_parallel)
        reason = partial(_reason, target) if reference else None
        with dequantized.dequantizing(source, output, tensor_parallel, reason) as checked:
            report = inspect(CheckpointReader(checked), output, target, tensor_parallel)
            # The manifest travels along, so a broken one must not.
            report.findings.extend(dequantized.findings(load_manifest(checked), allowed=reference))
            refuse_errors(report.findings, f"vLLM {VLLM} on {target}")
            report = replace(report, source=str(source))
            _write(checked, output, report, target)
        return report

    def support(self, scheme: Scheme, n: int, k: int, *, gpu: str = "auto", experts: bool = False) -> Support:
        """How vLLM runs a layer [n, k] of that scheme on the device.

        Args:
            experts: the experts of a block, whose layers that put hidden states out are [n, k].

        Raises:
            UnknownNameError: no such GPU.
        """
        layer = Layer("layer", n, k, scheme)
        choice = choose(FusedLayer(layer.name, (layer,), n, k, experts), find_target(gpu))
        if choice.kernel is not None:
            return Support("native", choice.kernel)
        return Support("reference", "; ".join(choice.reasons))


def _reason(target: Target, layer: FusedLayer) -> str | None:
    """Why no kernel runs the layer; None if one does."""
    choice = choose(layer, target)
    return "; ".join(choice.reasons) if choice.kernel is None else None


def check(folder: Path, target: Target, tensor_parallel: int = 1) -> list[Finding]:
    """Everything that vLLM would object to in `folder`, and what else is worth knowing.

    Raises:
        CheckpointError: the folder is not a readable checkpoint.
    """
    reader = CheckpointReader(folder)
    return _findings(reader, read_layers(reader), target, tensor_parallel)


def inspect(reader: CheckpointReader, output: Path, target: Target, tensor_parallel: int) -> ExportReport:
    """The report of an export, before anything is written."""
    layers = read_layers(reader)
    findings = _findings(reader, layers, target, tensor_parallel)
    broken = any(finding.severity == "error" for finding in findings)
    split = [] if broken else per_device(layers, tensor_parallel, parallel.heads(reader.config)[1])
    schemes = dict.fromkeys(layer.scheme.describe() for layer in layers if layer.scheme)
    return ExportReport(
        engine="vllm",
        engine_version=VLLM,
        source=str(reader.folder),
        output=str(output),
        target=str(target),
        tensor_parallel=tensor_parallel,
        scheme="; ".join(schemes) or "16-bit",
        quantized_layers=sum(layer.scheme is not None for layer in layers),
        kernels=parallel.kernel_counts(split, target),
        arguments=engine_arguments(tensor_parallel),
        weight_bytes=sum(file.stat().st_size for file in reader.files),
        findings=findings,
    )


def _findings(
    reader: CheckpointReader, layers: Sequence[Layer], target: Target, tensor_parallel: int
) -> list[Finding]:
    foreign = list(checks.check_format(reader))
    if foreign:
        return foreign
    kv_heads = parallel.heads(reader.config)[1]
    found = list(
        chain(
            checks.check_files(reader),
            checks.check_tensors(reader, layers),
            checks.check_shapes(reader, layers),
            checks.check_scales(reader, layers),
            checks.check_groups(layers),
            checks.check_fused(layers),
            checks.check_experts(layers),
            checks.check_config(reader.config, layers),
            check_cache(reader, layers, target),
            parallel.check_heads(reader.config, tensor_parallel),
            parallel.check_partition(layers, tensor_parallel, kv_heads),
            parallel.check_dtype(reader.config, target),
        )
    )
    # The shapes that kernels see mean nothing while the layers themselves are wrong.
    if all(finding.severity != "error" for finding in found):
        found += parallel.check_kernels(per_device(layers, tensor_parallel, kv_heads), target)
    return found


def _write(source: Path, output: Path, report: ExportReport, target: Target) -> None:
    """Make the folder under another name, then rename it."""
    partial = output.with_name(output.name + ".partial")
    with disk_errors(output):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            link_model(source, partial)
            write_launch_files(partial, output.resolve().name, report, target)
            write_json(partial / "export.json", report.to_dict())
            describe(partial, output.resolve().name, report, source)
            fsync_folder(partial)
            partial.rename(output)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
