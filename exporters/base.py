"""What every exporter returns and how its findings are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from qdeploy.errors import ExportError
from qdeploy.schemes import Scheme
from qdeploy.support import Support

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
    """

    severity: Severity
    problem: str
    fix: str = ""
    module: str | None = None

    def __str__(self) -> str:
        where = f"{self.module}: " if self.module else ""
        return f"{where}{self.problem}{'. ' + self.fix if self.fix else ''}"


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was exported, for what, and what to expect there.

    Attributes:
        kernels: engine's kernel class → number of layers as the engine fuses them; empty for 16 bits.
        arguments: engine arguments that the folder needs besides model, address and port.
        weight_bytes: size of the weight files.
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
    alike: dict[tuple[str, str], list[Finding]] = {}
    for finding in errors:
        alike.setdefault((finding.problem, finding.fix), []).append(finding)
    kinds = list(alike.values())
    shown = "\n".join(f"  {_tell(kind)}." for kind in kinds[:SHOWN])
    hidden = sum(len(kind) for kind in kinds[SHOWN:])
    more = f"\n  and {hidden} more" if hidden else ""
    count = f"{len(errors)} problem{'s' if len(errors) > 1 else ''}"
    raise ExportError(
        f"{target} would not serve this checkpoint, {count}; nothing was written:\n{shown}{more}"
    )


def _tell(kind: Sequence[Finding]) -> str:
    """The first of several findings that differ in the module alone."""
    others = f" (and {len(kind) - 1} more like it)" if len(kind) > 1 else ""
    return f"{kind[0]}{others}"
