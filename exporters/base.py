"""What every exporter returns and how its findings are told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from qdeploy.errors import ExportError
from qdeploy.schemes import Scheme
from qdeploy.support import Support

if TYPE_CHECKING:
    from qdeploy.exporters.lint.subject import Subject
    from qdeploy.exporters.targets import Target

Severity = Literal["error", "warning", "info"]
SHOWN = 5
"""Kinds of errors that a message lists; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check has to say about a checkpoint.

    Attributes:
        severity: "error": the engine would refuse the folder or compute something else; "warning": it runs,
            but not as one may think; "info": worth knowing.
        problem: what is the case, with the number that matters.
        fix: the smallest change that mends it; empty for "info".
        module: the layer or file that it is about, if it is one.
        code: of the rule that found it.
    """

    severity: Severity
    problem: str
    fix: str = ""
    module: str | None = None
    code: str = ""

    def __str__(self) -> str:
        where = f"{self.module}: " if self.module else ""
        return f"{where}{self.problem}{'. ' + self.fix if self.fix else ''}"


@dataclass(frozen=True, slots=True)
class Memory:
    """What a model takes of each device, and what that leaves; bytes where nothing else is said.

    Attributes:
        device_bytes: the device's memory; None for a CPU.
        weight_bytes: weights of the device's share of the model.
        overhead_bytes_estimated: what the engine takes beside weights and cache; 0 for a CPU.
        cache_bytes: left for keys and values; on a GPU as much of an estimate as the overhead.
        cache_bytes_per_token: of a token that all layers keep; None, as below, where it is not known.
        max_model_len: tokens of the longest sequence that is served.
        cache_tokens: tokens that the cache holds in sequences of that length.
        sequences: of that length at once.
    """

    device_bytes: int | None
    weight_bytes: int
    overhead_bytes_estimated: int
    cache_bytes: int
    cache_bytes_per_token: int | None = None
    max_model_len: int | None = None
    cache_tokens: int | None = None
    sequences: float | None = None


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was exported, for what, and what to expect there.

    Attributes:
        kernels: engine's kernel class → number of layers as the engine fuses them; empty for 16 bits.
        arguments: engine arguments that the folder needs besides model, address and port.
        weight_bytes: size of the weight files.
        memory: on each device, as far as it is known.
        pipeline_parallel: stages that the model is split into.
    """

    engine: str
    engine_version: str
    source: str
    output: str
    target: str
    tensor_parallel: int
    scheme: str
    quantized_layers: int
    kernels: dict[str, int]
    arguments: list[str]
    weight_bytes: int
    findings: list[Finding] = field(default_factory=list)
    memory: Memory | None = None
    pipeline_parallel: int = 1

    @property
    def kernel(self) -> str | None:
        """The kernels in one line, most used first; None for a 16-bit model."""
        ranked = sorted(self.kernels.items(), key=lambda item: -item[1])
        return ", ".join(f"{name} ({count} layers)" for name, count in ranked) or None

    def to_dict(self) -> dict[str, Any]:
        """The content of export.json."""
        return asdict(self) | {"kernel_expected": self.kernel}


class Exporter(Protocol):
    """Turns a checkpoint folder into what one engine loads."""

    name: str

    def export(
        self, source: Path, output: Path, *, gpu: str, tensor_parallel: int = 1, reference: bool = False
    ) -> ExportReport:
        """Check `source` for the target and write `output`.

        With `reference`, layers that the engine has no kernel for are dequantized.

        Raises:
            ExportError: the engine would refuse the checkpoint; nothing is written.
        """
        ...

    def support(self, scheme: Scheme, n: int, k: int, *, gpu: str = "auto", experts: bool = False) -> Support:
        """How the engine runs a layer [n, k] of that scheme on the device.

        Args:
            experts: the experts of a block, whose layers that put hidden states out are [n, k].

        Raises:
            UnknownNameError: no such GPU.
        """
        ...

    def lint(self, subject: Subject, target: Target, tensor_parallel: int) -> Iterator[Finding]:
        """What the engine and the device add to the linter's rules."""
        ...


@runtime_checkable
class HasBackends(Protocol):
    """An exporter for an engine that loads models in several ways.

    Attributes:
        backends: their names, the default first.
    """

    name: str
    backends: Sequence[str]

    def on(self, backend: str, pipeline_parallel: int) -> Exporter:
        """The exporter for one of them, and for that many pipeline stages.

        Raises:
            UsageError: no such backend, or it is not told of stages.
        """
        ...


def refuse_errors(findings: Sequence[Finding], target: str) -> None:
    """Raise if any finding is an error.

    Raises:
        ExportError: lists the first errors and how many there are.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return
    kinds = alike(errors)
    shown = "\n".join(f"  {_tell(kind)}." for kind in kinds[:SHOWN])
    hidden = sum(len(kind) for kind in kinds[SHOWN:])
    more = f"\n  and {hidden} more" if hidden else ""
    count = f"{len(errors)} problem{'s' if len(errors) > 1 else ''}"
    raise ExportError(
        f"{target} would not serve this checkpoint, {count}; nothing was written:\n{shown}{more}"
    )


def alike(findings: Sequence[Finding]) -> list[list[Finding]]:
    """The findings in groups that differ in the module alone, in order of the first of each."""
    kinds: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        kinds.setdefault((finding.code, finding.problem, finding.fix), []).append(finding)
    return list(kinds.values())


def _tell(kind: Sequence[Finding]) -> str:
    """The first of several findings that differ in the module alone."""
    others = f" (and {len(kind) - 1} more like it)" if len(kind) > 1 else ""
    return f"{kind[0]}{others}"
