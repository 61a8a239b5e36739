"""What a result was obtained with: versions, hardware, the command. Never a secret."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from qdeploy import __version__

PACKAGES = ("torch", "transformers", "safetensors", "numpy", "lm-eval")


def package_versions() -> dict[str, str]:
    """Installed versions of the libraries whose change could change a result."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu_model() -> str:
    """The processor's marketing name, from /proc/cpuinfo where there is one."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_flags() -> set[str]:
    """Instruction sets of this machine's processor by their Linux names, e.g. "avx512f"; empty elsewhere."""
    return set(_cpuinfo("flags").split())


def _cpuinfo(field: str) -> str:
    """A field of the first processor in /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    match = re.search(rf"^{field}\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1) if match else ""


def provenance() -> dict[str, Any]:
    """Versions, hardware, time (UTC) and command line of this process."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["qdeploy", *sys.argv[1:]]),
        "qdeploy": __version__,
        "python": platform.python_version(),
        "packages": package_versions(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
    }
