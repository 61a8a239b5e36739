"""Export for TensorRT-LLM's engine builder: a checkpoint for trtllm-build, and how to build and start it.

What is written follows the builder's source and ModelOpt's own output; TensorRT-LLM itself has not been run.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from qdeploy.checkpoint.checksums import recorded_hashes, write_checksums
from qdeploy.checkpoint.companions import copy_companions
from qdeploy.checkpoint.folder import refuse_used
from qdeploy.checkpoint.manifest import MANIFEST, Conversion, load_manifest
from qdeploy.checkpoint.tensor_file import room_for, write_tensors
from qdeploy.errors import UsageError
from qdeploy.exporters import parallel
from qdeploy.exporters import reference as dequantized
from qdeploy.exporters.algorithms import TENSORRT_LLM
from qdeploy.exporters.base import ExportReport, Finding, refuse_errors
from qdeploy.exporters.layers import FusedLayer, Layer, read_layers
from qdeploy.exporters.lint.engine import LOST_IN_CHECKPOINT, NO_GPU, NOT_RUN
from qdeploy.exporters.lint.fused import check_fused
from qdeploy.exporters.lint.linter import sound
from qdeploy.exporters.lint.subject import Subject
from qdeploy.exporters.staging import staged
from qdeploy.exporters.targets import Target, find_target
from qdeploy.exporters.trtllm_legacy import checks
from qdeploy.exporters.trtllm_legacy.algorithms import algorithm, objection
from qdeploy.exporters.trtllm_legacy.config import (
    check_config,
    checkpoint_config,
    quantization,
    read_config,
    window,
)
from qdeploy.exporters.trtllm_legacy.launch import serve_arguments, write_launch_files
from qdeploy.exporters.trtllm_legacy.rank import Model, rank_tensors
from qdeploy.exporters.trtllm_legacy.split import Split
from qdeploy.files import sha256_file, write_json
from qdeploy.formats.packed import Packed
from qdeploy.kv_cache import stored_scales
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.progress import progress
from qdeploy.schemes import Scheme
from qdeploy.support import Support

TARGET = "trtllm-build"
"""What the lineage calls the format."""


class EngineBuilderExporter:
    """Any packed folder, or one in 16 bits, of a known architecture for TensorRT-LLM up to 1.2.x."""

    name = "tensorrt-llm"

    def __init__(self, pipeline_parallel: int = 1) -> None:
        if pipeline_parallel < 1:
            raise UsageError(f"--pipeline-parallel is {pipeline_parallel}; it must be at least 1.")
        self._stages = pipeline_parallel

    def export(
        self,
        source: Path,
        output: Path,
        *,
        gpu: str = "auto",
        tensor_parallel: int = 1,
        reference: bool = False,
    ) -> ExportReport:
        """Check `source` for the target, write a checkpoint of it to `output`, and how to build and start it.

        One device's part of the model is in memory at a time.

        Args:
            gpu: a name out of `targets.TARGETS`, or "auto".
            tensor_parallel: devices that each layer is split over.
            reference: dequantize layers that have no kernel there, and take those that are.

        Raises:
            UsageError: unknown GPU, or a degree of parallelism below one.
            CheckpointError: `source` is not a readable checkpoint.
            ExportError: the builder would refuse it; nothing is written.
            OutputError: `output` is not empty, or the disk refuses.
        """
        refuse_used(output)
        target, split = find_target(gpu, tensor_parallel), Split(tensor_parallel, self._stages)
        reason = partial(_reason, target) if reference else None
        with dequantized.dequantizing(source, output, tensor_parallel, reason) as (checked, dense):
            packed = Packed(CheckpointReader(checked))
            findings = [*_findings(packed, target, split), *dense]
            refuse_errors(findings, f"trtllm-build of TensorRT-LLM {TENSORRT_LLM} on {target}")
            return _Export(packed, target, split, findings).write(source, output)

    def lint(self, subject: Subject, target: Target, tensor_parallel: int) -> Iterator[Finding]:
        """What the builder adds to the rules for any folder, as if it were exported."""
        yield from _findings(subject.packed, target, Split(tensor_parallel, self._stages))

    def support(self, scheme: Scheme, n: int, k: int, *, gpu: str = "auto", experts: bool = False) -> Support:
        """How engines run a layer [n, k] of that scheme on the device.

        Raises:
            UnknownNameError: no such GPU.
        """
        reason = "no experts are exported" if experts else objection(scheme, n, k, find_target(gpu))
        if reason is not None:
            return Support("reference", reason)
        return Support("converted", f"{algorithm(scheme)}; not run")


def _reason(target: Target, layer: FusedLayer) -> str | None:
    """Why nothing runs the layer; None if something does."""
    assert layer.scheme is not None
    return objection(layer.scheme, layer.n, layer.k, target)


def _dtype(config: Mapping[str, Any]) -> str:
    return str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")


def _findings(packed: Packed, target: Target, split: Split) -> Iterator[Finding]:
    if target.capability is None:
        yield NO_GPU(f"TensorRT-LLM runs on NVIDIA GPUs alone, not on {target}", "Give --gpu h100, say")
        return
    unknown = list(checks.check_architecture(packed.reader.config))
    if unknown:
        yield from unknown
        return
    layers, config = read_layers(packed.reader), read_config(packed.reader.folder)
    found = [
        *check_config(config, _dtype(packed.reader.config)),
        *checks.check_precision(config, set(packed.schemes.values())),
        *checks.check_split(layers, config, split),
        *checks.check_cache(packed, config["num_hidden_layers"], target),
    ]
    # Of stages and fused layers nothing can be said until the model can be split at all.
    if sound(found):
        found += [*checks.check_schemes(layers, split), *check_fused(Subject(packed, layers))]
    if sound(found):
        found += checks.check_shared_scales(packed, layers)
        found += checks.check_kernels(layers, parallel.heads(config)[1], split, target)
    yield from found
    if back := window(config):
        problem = f"attends {back} tokens back, which the checkpoint cannot say; build.sh allows no more"
        yield LOST_IN_CHECKPOINT(problem)
    yield NOT_RUN("follows trtllm-build's loader by its source; this project has not run it")


@dataclass(frozen=True)
class _Export:
    """A checked folder on its way to a checkpoint."""

    packed: Packed
    target: Target
    split: Split
    findings: list[Finding]

    def write(self, source: Path, output: Path) -> ExportReport:
        """Make the folder under another name, then rename it."""
        config, layers = read_config(self.packed.reader.folder), read_layers(self.packed.reader)
        scheme = next(iter(self.packed.schemes.values()), None)
        with staged(output) as folder:
            folder.mkdir(parents=True)
            hashes = self._write_ranks(folder, config)
            write_json(folder / "config.json", self._config(config, layers, scheme))
            _write_tokenizer(self.packed.reader.folder, folder / "tokenizer")
            report = self._report(source, folder, output, scheme)
            longest = min(config["max_position_embeddings"], window(config) or 2**31)
            name = algorithm(scheme) if scheme else None
            write_launch_files(folder, report, self.split, algorithm=name, longest=longest)
            self._write_lineage(folder, hashes)
        return report

    def _write_ranks(self, folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
        """One file for each device; returns the hex SHA-256 of each."""
        model = Model(
            self.packed,
            config["num_hidden_layers"],
            parallel.heads(config)[1],
            getattr(torch, _dtype(self.packed.reader.config)),
            config["tie_word_embeddings"],
            stored_scales(self.packed.reader),
        )
        hashes, room = {}, room_for(self.packed.reader.names)
        with progress("Exporting", self.split.devices) as shown:
            for rank in self.split.ranks():
                file = folder / f"rank{rank.index}.safetensors"
                shown.note(file.name)
                hashes[file.name] = write_tensors(file, rank_tensors(model, rank), room)
                shown.advance()
        return hashes

    def _write_lineage(self, folder: Path, hashes: Mapping[str, str]) -> None:
        """qdeploy.json, where the source has one, and SHA256SUMS; last, over all that is there."""
        reader, known = self.packed.reader, recorded_hashes(self.packed.reader.folder)
        manifest = load_manifest(reader.folder)
        if manifest is not None:
            files = {file: known.get(file.name) or sha256_file(file) for file in reader.files}
            source = self.packed.format.name if self.packed.format else "16 bits"
            done = Conversion(source=source, target=TARGET, sha256=reader.sha256_from(files))
            write_json(folder / MANIFEST, {**manifest.converted(done), "files": dict(hashes)})
        write_checksums(folder, hashes)

    def _config(
        self, config: Mapping[str, Any], layers: Sequence[Layer], scheme: Scheme | None
    ) -> dict[str, Any]:
        kept = checks.kept(layers, self.split)[0] if scheme else []
        found = quantization(scheme, kept, bool(stored_scales(self.packed.reader)))
        return checkpoint_config(config, _dtype(self.packed.reader.config), self.split, found)

    def _report(self, source: Path, folder: Path, output: Path, scheme: Scheme | None) -> ExportReport:
        count = len(self.packed.schemes)
        return ExportReport(
            engine="tensorrt-llm",
            engine_version=TENSORRT_LLM,
            source=str(source),
            output=str(output),
            target=str(self.target),
            tensor_parallel=self.split.tensor_parallel,
            pipeline_parallel=self.split.pipeline_parallel,
            scheme=scheme.describe() if scheme else "16-bit",
            quantized_layers=count,
            kernels={str(algorithm(scheme)): count} if scheme else {},
            arguments=serve_arguments(self.split),
            weight_bytes=sum(file.stat().st_size for file in folder.glob("*.safetensors")),
            findings=self.findings,
        )


def _write_tokenizer(source: Path, folder: Path) -> None:
    """The tokenizer in a folder of its own, beside the config.json that says what it is of."""
    folder.mkdir()
    copy_companions(source, folder)
    shutil.copyfile(source / "config.json", folder / "config.json")
