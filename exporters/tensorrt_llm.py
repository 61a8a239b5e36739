"""Export for TensorRT-LLM's PyTorch backend: a folder in ModelOpt's format, and how to start it.

What is written follows the loader's source and ModelOpt's own output; TensorRT-LLM itself has not been run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from qdeploy.checkpoint.folder import refuse_used
from qdeploy.conversion import convert
from qdeploy.errors import UnknownNameError, UsageError
from qdeploy.exporters import memory, parallel
from qdeploy.exporters import reference as dequantized
from qdeploy.exporters.algorithms import CACHE_IN_FP8, TENSORRT_LLM, objection
from qdeploy.exporters.base import Exporter, ExportReport, Finding, refuse_errors
from qdeploy.exporters.cache import NO_CACHE_IN_FP8, WITHOUT
from qdeploy.exporters.description import describe
from qdeploy.exporters.fitting import Fitting, fit_model
from qdeploy.exporters.layers import FusedLayer, expert_sets, per_device
from qdeploy.exporters.linking import link_model
from qdeploy.exporters.lint.engine import NO_GPU, NOT_READ, NOT_RUN
from qdeploy.exporters.lint.fused import check_divisors, check_fused
from qdeploy.exporters.lint.linter import sound
from qdeploy.exporters.lint.rule import rule
from qdeploy.exporters.lint.subject import Subject
from qdeploy.exporters.staging import staged
from qdeploy.exporters.targets import Target, find_target
from qdeploy.exporters.trtllm_launch import engine_arguments, write_launch_files
from qdeploy.exporters.trtllm_legacy.exporter import EngineBuilderExporter
from qdeploy.formats.modelopt import algorithm
from qdeploy.formats.packed import Packed
from qdeploy.kv_cache import stored_scales
from qdeploy.schemes import PRESETS, Scheme
from qdeploy.support import Support

UNCHECKED = rule(
    "QD615",
    "warning",
    "Kernels for experts were not checked",
    "Which quantized experts TensorRT-LLM runs on which GPU is not in this project's tables.",
)


class TensorRTLLMExporter:
    """Any packed folder, or one in 16 bits, for TensorRT-LLM."""

    name = "tensorrt-llm"
    backends = ("pytorch", "tensorrt")

    def on(self, backend: str, pipeline_parallel: int) -> Exporter:
        """The exporter for a backend: this one for PyTorch, and for TensorRT that of its engine builder.

        Raises:
            UnknownNameError: no such backend.
            UsageError: stages for PyTorch, whose folders are split when they are served.
        """
        if backend not in self.backends:
            raise UnknownNameError("backend", backend, self.backends)
        if backend == "tensorrt":
            return EngineBuilderExporter(pipeline_parallel)
        if pipeline_parallel != 1:
            raise UsageError(
                f"--pipeline-parallel {pipeline_parallel} takes --backend tensorrt; with pytorch, give "
                f"--pp_size {pipeline_parallel} to serve.sh."
            )
        return self

    def export(
        self,
        source: Path,
        output: Path,
        *,
        gpu: str = "auto",
        tensor_parallel: int = 1,
        reference: bool = False,
    ) -> ExportReport:
        """Check `source` for the target, write it to `output` in ModelOpt's format, and how to start it.

        Args:
            gpu: a name out of `targets.TARGETS`, or "auto".
            tensor_parallel: devices that the model is split over.
            reference: dequantize layers that have no kernel there, and take those that are.

        Raises:
            UsageError: unknown GPU, or a degree of parallelism below one.
            CheckpointError: `source` is not a readable checkpoint.
            ExportError: TensorRT-LLM would refuse it; nothing is written.
            ConversionError: scales are not exact in ModelOpt's format; nothing is written.
            OutputError: `output` is not empty, or the disk refuses.
        """
        refuse_used(output)
        target = find_target(gpu, tensor_parallel)
        reason = partial(_reason, target) if reference else None
        with dequantized.dequantizing(source, output, tensor_parallel, reason) as (checked, dense):
            subject = Subject.open(checked)
            findings = [*_findings(subject, target, tensor_parallel), *dense]
            refuse_errors(findings, f"TensorRT-LLM {TENSORRT_LLM} on {target}")
            fitting = fit_model(subject.reader, subject.layers, memory.TENSORRT_LLM, target, tensor_parallel)
            findings += fitting.findings
            refuse_errors(findings, f"TensorRT-LLM {TENSORRT_LLM} on {target}")
            return _write(source, subject.packed, output, target, tensor_parallel, findings, fitting)

    def lint(self, subject: Subject, target: Target, tensor_parallel: int) -> Iterator[Finding]:
        """What TensorRT-LLM adds to the rules for any folder: formats, kernels, split, memory."""
        blocks = subject.format == "fp8" and set(subject.packed.schemes.values()) == {PRESETS["FP8_BLOCK"]}
        if subject.format not in (None, "modelopt") and not blocks:
            yield NOT_READ(
                f"TensorRT-LLM's PyTorch backend does not read {subject.format}",
                f"qdeploy export {subject.reader.folder} --engine tensorrt-llm -o OUT",
                str(subject.reader.folder),
            )
            return
        found = list(_findings(subject, target, tensor_parallel))
        yield from found
        if sound(found):
            fitting = fit_model(subject.reader, subject.layers, memory.TENSORRT_LLM, target, tensor_parallel)
            yield from fitting.findings

    def support(self, scheme: Scheme, n: int, k: int, *, gpu: str = "auto", experts: bool = False) -> Support:
        """How TensorRT-LLM's PyTorch backend runs a layer [n, k] of that scheme on the device.

        Where it does not and the engine builder does, the reason says so.

        Raises:
            UnknownNameError: no such GPU.
        """
        reason = objection(scheme, n, k, find_target(gpu))
        if reason is None:
            return Support("converted", f"ModelOpt's {algorithm(scheme)}; not run")
        built = EngineBuilderExporter().support(scheme, n, k, gpu=gpu, experts=experts)
        other = "; --backend tensorrt does, up to 1.2.x" if built.kind == "converted" else ""
        return Support("reference", reason + other)


def _reason(target: Target, layer: FusedLayer) -> str | None:
    """Why nothing runs the layer; None if something does."""
    assert layer.scheme is not None
    return objection(layer.scheme, layer.n, layer.k, target)


def _findings(subject: Subject, target: Target, tensor_parallel: int) -> Iterator[Finding]:
    """What the loader and the kernels ask of the layers, in whatever format they are now."""
    if target.capability is None:
        yield NO_GPU(f"TensorRT-LLM runs on NVIDIA GPUs alone, not on {target}", "Give --gpu h100, say")
        return
    config, kv_heads = subject.reader.config, parallel.heads(subject.reader.config)[1]
    found = list(
        chain(
            parallel.check_heads(config, tensor_parallel),
            parallel.check_partition(subject.layers, tensor_parallel, kv_heads),
            check_fused(subject),
            check_divisors(subject),
        )
    )
    yield from found
    if sound(found):
        for layer in per_device(subject.layers, tensor_parallel, kv_heads):
            reason = _reason(target, layer)
            if reason is not None:
                known = f"Quantize again to what it runs there: qdeploy methods --gpu {target.name}"
                yield parallel.NO_KERNEL(reason, known, layer.name)
    if stored_scales(subject.reader) and target.capability < CACHE_IN_FP8:
        yield NO_CACHE_IN_FP8(f"on {target} there is no cache in FP8", WITHOUT)
    if any(layer.scheme for members in expert_sets(subject.layers).values() for layer in members):
        yield UNCHECKED("whether TensorRT-LLM has kernels for these experts was not checked")
    yield NOT_RUN("follows TensorRT-LLM's loader by its source; this project has not run it")


def _write(
    source: Path,
    packed: Packed,
    output: Path,
    target: Target,
    tensor_parallel: int,
    findings: list[Finding],
    fitting: Fitting,
) -> ExportReport:
    """Make the folder under another name, then rename it."""
    with staged(output) as folder:
        if packed.format is None:
            link_model(packed.reader.folder, folder)
        else:
            convert(packed.reader.folder, folder, "modelopt")
        report = _report(source, packed, folder, output, target, tensor_parallel, findings, fitting)
        cache_in_fp8 = bool(stored_scales(packed.reader))
        write_launch_files(folder, output.resolve().name, report, cache_in_fp8=cache_in_fp8)
        describe(folder, output.resolve().name, report, packed.reader.folder)
    return report


def _report(
    source: Path,
    packed: Packed,
    folder: Path,
    output: Path,
    target: Target,
    tensor_parallel: int,
    findings: list[Finding],
    fitting: Fitting,
) -> ExportReport:
    schemes = packed.schemes.values()
    return ExportReport(
        engine="tensorrt-llm",
        engine_version=TENSORRT_LLM,
        source=str(source),
        output=str(output),
        target=str(target),
        tensor_parallel=tensor_parallel,
        scheme="; ".join(dict.fromkeys(scheme.describe() for scheme in schemes)) or "16-bit",
        quantized_layers=len(packed.schemes),
        kernels=dict(Counter(str(algorithm(scheme)) for scheme in schemes)),
        arguments=[*engine_arguments(tensor_parallel), *fitting.arguments],
        weight_bytes=sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        findings=findings,
        memory=fitting.memory,
    )
