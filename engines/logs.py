"""What an engine's log says: the reason of a failure, the kernels of quantized layers."""

from __future__ import annotations

import re
from pathlib import Path

TAIL_LINES = 20

_PREFIX = re.compile(
    r"^(\([\w-]+ pid=\d+\) ?)?((DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] ?)?"
)
_EXCEPTION = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt)(?:: |$)")
_NOISE = re.compile(r"[█▄▀]|Route: |% Completed|^\s*$|^Traceback \(|^  |^ - |^nanobind: ")
"""Banner, routes, progress, the bodies of tracebacks, what Triton leaks at the end."""

_SECONDARY = (
    "Engine core initialization failed",
    "Worker failed with error",
    "WorkerProc initialization failed",
)
_KERNEL = re.compile(
    r"\b(?:Using|Selected) (\w*Kernel\w*) for |\bUsing '?(\w+)'? (?!Unquantized)(?:\w+ )?MoE backend"
)
_QUANTIZATION = re.compile(r"\bInitializing a V1 LLM engine .*?\bquantization=([\w-]+)")


def read_log(path: Path) -> str:
    """The log so far; "" before anything was written."""
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def kernels(log: str) -> str | None:
    """Kernel classes that vLLM says it runs quantized layers with, e.g. "MarlinLinearKernel"; None: none.

    vLLM logs `Using K for CompressedTensorsWNA16` (weight-only, GPTQ, AWQ), `Selected K for …` (FP8,
    INT8) and `Using 'B' … MoE backend`, once per kernel.
    """
    found = [kernel or backend for kernel, backend in _KERNEL.findall(log)]
    return ", ".join(dict.fromkeys(found)) or None


def quantization(log: str) -> str | None:
    """The quantization method in vLLM's engine configuration, e.g. "compressed-tensors"."""
    match = _QUANTIZATION.search(log)
    return match.group(1) if match and match.group(1) != "None" else None


def failure(log: str) -> str:
    """The likeliest cause, the first exception that is not a mere consequence, then the last lines."""
    lines = [_PREFIX.sub("", line).rstrip() for line in log.splitlines()]
    telling = [line for line in lines if not _NOISE.search(line)]
    tail = "\n".join(f"    {line[:300]}" for line in telling[-TAIL_LINES:])
    cause = _cause(lines)
    return (f"{cause}\n" if cause else "") + (f"  Last lines of the log:\n{tail}" if tail else "")


def _cause(lines: list[str]) -> str | None:
    for number, line in enumerate(lines):
        if _EXCEPTION.match(line) and not any(text in line for text in _SECONDARY):
            detail = [more.strip() for more in lines[number + 1 : number + 2] if more.startswith("  ")]
            return "  " + " ".join([line, *detail])[:600]
    return None
