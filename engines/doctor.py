"""The command `qdeploy doctor`: what this machine can quantize and serve, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

EXTRAS = {"eval": "lm_eval", "gguf": "gguf", "hub": "datasets"}
"""Extra of the package → a module that it brings."""

CUDA_CAPABILITY = 7.5
"""Least compute capability for which vLLM 0.32 has kernels for the presets: W4A16, W8A16 (Marlin), W8A8, and
for 2 and 3 bits Humming."""

NO_KERNEL = "no kernel in vLLM's CPU build"
CPU_SCHEMES = {
    "W4A16": "native",
    "W4A16_ASYM": "native",
    "W3A16": NO_KERNEL,
    "W3A16_ASYM": NO_KERNEL,
    "W2A16": NO_KERNEL,
    "W2A16_ASYM": NO_KERNEL,
    "W8A16": NO_KERNEL,
    "W8A8": "native",
}
"""Presets → what the CPU build of vLLM 0.32 can do with them; without AVX-512, 4 bits by qdeploy's plugin."""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON on stdout.")] = False,
) -> None:
    """Say what this machine can quantize and serve.

    Looks at cores, memory, disk, GPUs (nvidia-smi), installed engines and
    optional packages. The largest model is an estimate: one decoder block
    with its Hessians in half of the free memory, the 16-bit source and the
    packed result on the free disk of the current folder.

    Examples:

        qdeploy doctor

        qdeploy doctor --json
    """
    findings = examine()
    if as_json:
        typer.echo(json.dumps(findings, indent=2))
    else:
        typer.echo("\n".join(_lines(findings)))


def examine() -> dict[str, Any]:
    """All findings, as the JSON output has them; sizes in bytes, models in parameters."""
    from qdeploy.engines.environment import detect_device, installed
    from qdeploy.home import home

    machine = _machine()
    gpus = _gpus()
    engines = [
        {"engine": e.engine, "version": e.version, "device": e.device, "python": str(e.python)}
        for e in installed()
    ]
    device = detect_device()
    missing = _missing_extras()
    if not any(engine["device"] == device for engine in engines):
        missing[f"engine vllm for {device}"] = f"qdeploy engines install vllm --device {device}"
    return {
        "machine": machine,
        "gpus": gpus,
        "quantize": {"parameters": _largest_model(machine)},
        "serve": {"device": device, "schemes": _schemes(device, gpus)},
        "engines": engines,
        "engines_folder": str(home() / "engines"),
        "missing": missing,
    }


def _machine() -> dict[str, Any]:
    import os
    import shutil
    from importlib.metadata import version

    import psutil

    from qdeploy.provenance import cpu_flags, cpu_model

    memory = psutil.virtual_memory()
    return {
        "cpu": cpu_model(),
        "avx512": "avx512f" in cpu_flags(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory.total,
        "memory_available_bytes": memory.available,
        "disk_free_bytes": shutil.disk_usage(Path.cwd()).free,
        "torch": version("torch"),
    }


def _gpus() -> list[dict[str, Any]]:
    """Name, memory and compute capability of each GPU that nvidia-smi lists."""
    import shutil
    import subprocess

    smi = shutil.which("nvidia-smi")
    if smi is None:
        return []
    command = [smi, "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines()]
    return [
        {"name": row[0], "memory_bytes": int(row[1]) << 20, "compute_capability": float(row[2])}
        for row in rows
        if answer.returncode == 0 and len(row) == 3
    ]


def _largest_model(machine: dict[str, Any]) -> int:
    """Parameters of the largest model to quantize, roughly.

    Memory: a block of 1/32 of the model takes about 16 bytes per parameter (weights, Hessians and their
    factors in float32), in half of what is free. Disk: 2 bytes per parameter for the source, 0.6 for the
    result.
    """
    by_memory = machine["memory_available_bytes"] // 2 * 32 // 16
    by_disk = int(machine["disk_free_bytes"] / 2.6)
    return int(min(by_memory, by_disk))


def _schemes(device: str, gpus: list[dict[str, Any]]) -> dict[str, str]:
    """Preset → "native", or why there is no kernel for it."""
    if device == "cpu":
        return CPU_SCHEMES
    capability = max((gpu["compute_capability"] for gpu in gpus), default=0.0)
    absent = f"needs compute capability {CUDA_CAPABILITY}, the GPU has {capability}"
    return dict.fromkeys(CPU_SCHEMES, "native" if capability >= CUDA_CAPABILITY else absent)


def _missing_extras() -> dict[str, str]:
    """What is missing → the command that gets it."""
    from importlib.util import find_spec

    return {
        f"extra {extra}": f"pip install 'qdeploy[{extra}]'"
        for extra, module in EXTRAS.items()
        if find_spec(module) is None
    }


def _lines(findings: dict[str, Any]) -> list[str]:
    machine, serve = findings["machine"], findings["serve"]
    gib = {key: value / 2**30 for key, value in machine.items() if key.endswith("_bytes")}
    gpus = [
        f"{gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GiB, capability {gpu['compute_capability']}"
        for gpu in findings["gpus"]
    ]
    return [
        f"Machine   {machine['cpu']}, {machine['cores']} cores",
        f"Memory    {gib['memory_available_bytes']:.1f} GiB free of {gib['memory_bytes']:.1f}",
        f"Disk      {gib['disk_free_bytes']:.1f} GiB free here",
        f"GPU       {'; '.join(gpus) or 'none'}",
        f"Torch     {machine['torch']}",
        f"Quantize  up to about {findings['quantize']['parameters'] / 1e9:.1f} billion parameters",
        *(
            f"Engine    {e['engine']} {e['version']} ({e['device']})  {e['python']}"
            for e in findings["engines"]
        ),
        *(f"Serve     {name:11} on {serve['device']}: {state}" for name, state in serve["schemes"].items()),
        *(f"Missing   {what}: {command}" for what, command in findings["missing"].items()),
    ]
