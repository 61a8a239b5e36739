"""Export for vLLM: apply the linter's rules and vLLM's own, link the files, write how to start it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

from qdeploy.checkpoint.folder import refuse_used
from qdeploy.conversion import convert
from qdeploy.exporters import memory, parallel
from qdeploy.exporters import reference as dequantized
from qdeploy.exporters.base import ExportReport, Finding, refuse_errors
from qdeploy.exporters.cache import check_cache_target
from qdeploy.exporters.description import describe
from qdeploy.exporters.fitting import Fitting, fit_model
from qdeploy.exporters.kernels import VLLM, choose
from qdeploy.exporters.launch import engine_arguments, write_launch_files
from qdeploy.exporters.layers import FusedLayer, Layer, per_device
from qdeploy.exporters.linking import link_model
from qdeploy.exporters.lint.folder import check_files
from qdeploy.exporters.lint.linter import check_headers, check_scales, sound
from qdeploy.exporters.lint.rule import rule
from qdeploy.exporters.lint.subject import Subject
from qdeploy.exporters.staging import staged
from qdeploy.exporters.targets import Target, find_target
from qdeploy.exporters.vllm_formats import check_format, objection
from qdeploy.files import write_json
from qdeploy.formats.packed import FORMATS, Packed, has_cache_in_fp8
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.schemes import Scheme
from qdeploy.support import Support

CONVERTED_TO = "compressed-tensors"
CONVERTED = rule(
    "QD613",
    "info",
    "Stored in another format for the engine",
    "Codes, zero points and scales are what they were; `qdeploy convert` says what that means.",
)


class VllmExporter:
    """Any packed folder, or one in 16 bits: as it is if vLLM reads it, else as compressed-tensors."""

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
            ConversionError: it has to be stored in another format, and scales are not exact in that.
            OutputError: `output` is not empty, or the disk refuses.
        """
        refuse_used(output)
        target = find_target(gpu, tensor_parallel)
        reason = partial(_reason, target) if reference else None
        with (
            _readable(source, output, target) as (readable, converted),
            dequantized.dequantizing(readable, output, tensor_parallel, reason) as (checked, dense),
        ):
            report = inspect(Subject.open(checked), output, target, tensor_parallel)
            report.findings.extend([*converted, *dense])
            refuse_errors(report.findings, f"vLLM {VLLM} on {target}")
            report = replace(report, source=str(source))
            _write(checked, output, report, target)
        return report

    def lint(self, subject: Subject, target: Target, tensor_parallel: int) -> Iterator[Finding]:
        """What vLLM adds to the rules for any folder: formats, kernels, split, memory."""
        found = _for_device(subject, target, tensor_parallel)
        yield from found
        if sound(found):
            fitting = fit_model(subject.reader, subject.layers, memory.VLLM, target, tensor_parallel)
            yield from fitting.findings

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


@contextmanager
def _readable(source: Path, output: Path, target: Target) -> Iterator[tuple[Path, list[Finding]]]:
    """`source`, or for a while a folder beside `output` in a format that vLLM reads; and what to tell."""
    packed = Packed(CheckpointReader(source))
    name = packed.format.name if packed.format else None
    reasons = dict.fromkeys(objection(name, scheme, target) for scheme in packed.schemes.values())
    told = "; ".join(reason for reason in reasons if reason)
    holds = FORMATS[CONVERTED_TO].refusal
    if not told or any(holds(scheme, *packed.shape(m)) for m, scheme in packed.schemes.items()):
        yield source, []
        return
    folder = output.with_name(output.name + ".converted")
    convert(source, folder, CONVERTED_TO)
    try:
        yield folder, [CONVERTED(f"stored as {CONVERTED_TO}, as {name} vLLM {VLLM} does not take it: {told}")]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check(folder: Path, target: Target, tensor_parallel: int = 1) -> list[Finding]:
    """Everything that vLLM would object to in `folder`, and what else is worth knowing.

    Raises:
        CheckpointError: the folder is not a readable checkpoint.
    """
    return _findings(Subject.open(folder), target, tensor_parallel)


def inspect(subject: Subject, output: Path, target: Target, tensor_parallel: int) -> ExportReport:
    """The report of an export, before anything is written."""
    reader, layers = subject.reader, subject.layers
    findings = _findings(subject, target, tensor_parallel)
    split, fitting = [], Fitting(None)
    if sound(findings):
        split = per_device(layers, tensor_parallel, parallel.heads(reader.config)[1])
        fitting = fit_model(reader, layers, memory.VLLM, target, tensor_parallel)
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
        arguments=[*engine_arguments(tensor_parallel), *fitting.arguments],
        weight_bytes=sum(file.stat().st_size for file in reader.files),
        findings=[*findings, *fitting.findings],
        memory=fitting.memory,
    )


def _findings(subject: Subject, target: Target, tensor_parallel: int) -> list[Finding]:
    """All rules but those that decode layers."""
    found = [*check_files(subject), *check_headers(subject), *check_scales(subject)]
    return found + (_for_device(subject, target, tensor_parallel) if sound(found) else [])


def _for_device(subject: Subject, target: Target, tensor_parallel: int) -> list[Finding]:
    config, kv_heads = subject.reader.config, parallel.heads(subject.reader.config)[1]
    found = list(
        chain(
            check_format(subject, target),
            parallel.check_heads(config, tensor_parallel),
            parallel.check_partition(subject.layers, tensor_parallel, kv_heads),
            parallel.check_dtype(config, target),
            check_cache_target(config, target) if has_cache_in_fp8(subject.block) else (),
        )
    )
    # The shapes that kernels see mean nothing while layers cannot be split.
    if sound(found):
        found += parallel.check_kernels(per_device(subject.layers, tensor_parallel, kv_heads), target)
    return found


def _write(source: Path, output: Path, report: ExportReport, target: Target) -> None:
    """Make the folder under another name, then rename it."""
    with staged(output) as folder:
        link_model(source, folder)
        write_launch_files(folder, output.resolve().name, report, target)
        write_json(folder / "export.json", report.to_dict())
        describe(folder, output.resolve().name, report, source)
