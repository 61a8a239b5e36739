"""Export for TensorRT-LLM's PyTorch backend: a folder in ModelOpt's format, and how to start it.

What is written follows the loader's source and ModelOpt's own output; TensorRT-LLM itself has not been run.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

from qdeploy.checkpoint.folder import refuse_used
from qdeploy.checkpoint.manifest import load_manifest
from qdeploy.conversion import convert
from qdeploy.errors import disk_errors
from qdeploy.exporters import parallel
from qdeploy.exporters import reference as dequantized
from qdeploy.exporters.algorithms import CACHE_IN_FP8, TENSORRT_LLM, objection
from qdeploy.exporters.base import ExportReport, Finding, refuse_errors
from qdeploy.exporters.layers import Layer, expert_sets, fused_sets, per_device, read_layers
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
        with ExitStack() as stack:
            checked = source
            if reference:
                missing = _without_kernel(CheckpointReader(source), target, tensor_parallel)
                checked = stack.enter_context(dequantized.dequantizing(source, output, missing))
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


def _without_kernel(reader: CheckpointReader, target: Target, tensor_parallel: int) -> dict[str, str]:
    """Layer → why nothing runs it; layers that are fused go together."""
    layers = per_device(read_layers(reader), tensor_parallel, parallel.heads(reader.config)[1])
    reasons = {layer: objection(layer.scheme, layer.n, layer.k, target) for layer in layers if layer.scheme}
    return {
        member.name: reason
        for layer, reason in reasons.items()
        if reason is not None
        for member in layer.members
    }


def _findings(packed: Packed, target: Target, tensor_parallel: int) -> Iterator[Finding]:
    reader = packed.reader
    layers, kv_heads = read_layers(reader), parallel.heads(reader.config)[1]
    found = list(
        chain(
            parallel.check_heads(reader.config, tensor_parallel),
            parallel.check_partition(layers, tensor_parallel, kv_heads),
            _check_fused(packed, layers),
        )
    )
    yield from found
    if all(finding.severity != "error" for finding in found):
        for layer in per_device(layers, tensor_parallel, kv_heads):
            assert layer.scheme is not None
            reason = objection(layer.scheme, layer.n, layer.k, target)
            if reason is not None:
                yield Finding("error", reason, "Choose another scheme; see qdeploy methods", layer.name)
    if target.capability is None and not packed.schemes:
        yield Finding("error", "TensorRT-LLM runs on NVIDIA GPUs alone", "Give --gpu, e.g. --gpu h100")
    if stored_scales(reader) and target.capability is not None and target.capability < CACHE_IN_FP8:
        yield Finding("error", f"on {target} there is no cache in FP8", "Quantize again without kv_cache")
    if any(layer.scheme for members in expert_sets(layers).values() for layer in members):
        yield Finding("warning", "whether TensorRT-LLM has kernels for these experts was not checked")
    yield Finding("info", "follows TensorRT-LLM's loader by its source; this project has not run it")


def _check_fused(packed: Packed, layers: Sequence[Layer]) -> Iterator[Finding]:
    """Layers that run as one matrix have one scheme, and equal scales where they have one of all."""
    for name, members in fused_sets(layers):
        schemes = {member.scheme for member in members}
        if len(schemes) > 1:
            told = ", ".join(f"{m.leaf} {m.scheme.describe() if m.scheme else '16-bit'}" for m in members)
            yield Finding("error", f"runs as one matrix, but schemes differ: {told}", "Give them one", name)
            continue
        (scheme,) = schemes
        if scheme is None or (scheme.rows == 1 and scheme.steps != "e4m3"):
            continue
        read = [packed.read(member.name) for member in members]
        shared, leaves = [(q.divisor, q.input_scale) for q in read], ", ".join(m.leaf for m in members)
        if any(_differ(one, other) for pair in shared for one, other in zip(pair, shared[0], strict=True)):
            yield Finding(
                "error",
                f"the loader wants one divisor and one input scale for all of {leaves}",
                "Quantize the model again",
                name,
            )


def _differ(one: object, other: object) -> bool:
    if one is None or other is None:
        return one is not other
    return bool(one != other)


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
