"""Export for TensorRT-LLM's PyTorch backend: a folder in ModelOpt's format, and how to start it.

What is written follows the loader's source and ModelOpt's own output; TensorRT-LLM itself has not been run.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

from torch import Tensor

from qdeploy.checkpoint.folder import refuse_used
from qdeploy.checkpoint.manifest import load_manifest
from qdeploy.conversion import convert
from qdeploy.errors import disk_errors
from qdeploy.exporters import checks, parallel
from qdeploy.exporters import reference as dequantized
from qdeploy.exporters.algorithms import CACHE_IN_FP8, TENSORRT_LLM, objection
from qdeploy.exporters.base import ExportReport, Finding, refuse_errors
from qdeploy.exporters.description import describe
from qdeploy.exporters.layers import FusedLayer, Layer, expert_sets, fused_sets, per_device, read_layers
from qdeploy.exporters.linking import link_model
from qdeploy.exporters.targets import Target, find_target
from qdeploy.exporters.trtllm_launch import engine_arguments, write_launch_files
from qdeploy.files import fsync_folder
from qdeploy.formats.modelopt import algorithm
from qdeploy.formats.packed import Packed
from qdeploy.kv_cache import stored_scales
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.schemes import Scheme
from qdeploy.support import Support


class TensorRTLLMExporter:
    """Any packed folder, or one in 16 bits, for TensorRT-LLM."""

    name = "tensorrt-llm"

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
        with dequantized.dequantizing(source, output, tensor_parallel, reason) as checked:
            packed = Packed(CheckpointReader(checked))
            findings = [
                *_findings(packed, target, tensor_parallel),
                *dequantized.findings(load_manifest(checked), allowed=reference),
            ]
            refuse_errors(findings, f"TensorRT-LLM {TENSORRT_LLM} on {target}")
            return _write(source, packed, output, target, tensor_parallel, findings)

    def support(self, scheme: Scheme, n: int, k: int, *, gpu: str = "auto", experts: bool = False) -> Support:
        """How TensorRT-LLM runs a layer [n, k] of that scheme on the device.

        Raises:
            UnknownNameError: no such GPU.
        """
        reason = objection(scheme, n, k, find_target(gpu))
        if reason is not None:
            return Support("reference", reason)
        return Support("converted", f"ModelOpt's {algorithm(scheme)}; not run")


def _reason(target: Target, layer: FusedLayer) -> str | None:
    """Why nothing runs the layer; None if something does."""
    assert layer.scheme is not None
    return objection(layer.scheme, layer.n, layer.k, target)


def _findings(packed: Packed, target: Target, tensor_parallel: int) -> Iterator[Finding]:
    if target.capability is None:
        yield Finding(
            "error", f"TensorRT-LLM runs on NVIDIA GPUs alone, not on {target}", "Give --gpu h100, say"
        )
        return
    reader = packed.reader
    layers, kv_heads = read_layers(reader), parallel.heads(reader.config)[1]
    found = list(
        chain(
            parallel.check_heads(reader.config, tensor_parallel),
            parallel.check_partition(layers, tensor_parallel, kv_heads),
            checks.check_fused(layers),
            _check_divisors(packed, layers),
        )
    )
    yield from found
    if all(finding.severity != "error" for finding in found):
        for layer in per_device(layers, tensor_parallel, kv_heads):
            reason = _reason(target, layer)
            if reason is not None:
                known = f"Quantize again to what it runs there: qdeploy methods --gpu {target.name}"
                yield Finding("error", reason, known, layer.name)
    if stored_scales(reader) and target.capability < CACHE_IN_FP8:
        yield Finding("error", f"on {target} there is no cache in FP8", "Quantize again without kv_cache")
    if any(layer.scheme for members in expert_sets(layers).values() for layer in members):
        yield Finding("warning", "whether TensorRT-LLM has kernels for these experts was not checked")
    yield Finding("info", "follows TensorRT-LLM's loader by its source; this project has not run it")


def _check_divisors(packed: Packed, layers: Sequence[Layer]) -> Iterator[Finding]:
    """Layers of NVFP4 that run as one have one divisor and one input scale, as the loader asserts."""
    for name, members in fused_sets(layers):
        if any(member.scheme is None or member.scheme.steps != "e4m3" for member in members):
            continue
        read = {member.leaf: packed.read(member.name) for member in members}
        found = {leaf: (_number(q.divisor), _number(q.input_scale)) for leaf, q in read.items()}
        if len(set(found.values())) > 1:
            told = ", ".join(f"{leaf} {divisor}, {scale}" for leaf, (divisor, scale) in found.items())
            yield Finding(
                "error",
                f"divisors and input scales of layers that run as one matrix differ: {told}",
                "Quantize the model again",
                name,
            )


def _number(scale: Tensor | None) -> str:
    return "none" if scale is None else f"{float(scale):.7g}"


def _write(
    source: Path,
    packed: Packed,
    output: Path,
    target: Target,
    tensor_parallel: int,
    findings: list[Finding],
) -> ExportReport:
    """Make the folder under another name, then rename it."""
    staged = output.with_name(output.name + ".staged")
    with disk_errors(output):
        shutil.rmtree(staged, ignore_errors=True)
        try:
            if packed.format is None:
                link_model(packed.reader.folder, staged)
            else:
                convert(packed.reader.folder, staged, "modelopt")
            report = _report(source, packed, staged, output, target, tensor_parallel, findings)
            write_launch_files(staged, report, cache_in_fp8=bool(stored_scales(packed.reader)))
            describe(staged, output.resolve().name, report, packed.reader.folder)
            fsync_folder(staged)
            staged.rename(output)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
    return report


def _report(
    source: Path,
    packed: Packed,
    staged: Path,
    output: Path,
    target: Target,
    tensor_parallel: int,
    findings: list[Finding],
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
        arguments=engine_arguments(tensor_parallel),
        weight_bytes=sum(file.stat().st_size for file in staged.glob("*.safetensors")),
        findings=findings,
    )
