"""The files that start the engine: serve.sh, compose.yaml and engine_args.json."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from qdeploy.exporters.base import ExportReport
from qdeploy.exporters.kernels import VLLM
from qdeploy.exporters.targets import Target
from qdeploy.files import write_json, write_text

GPU_IMAGE = f"vllm/vllm-openai:v{VLLM}"
CPU_IMAGE = f"qdeploy-vllm-cpu:{VLLM}"
"""Built from docker/vllm-cpu.Dockerfile."""

MODULE = "vllm.entrypoints.openai.api_server"
# With AMX, vLLM would run 4-bit weights with 8-bit activations, which is not what W4A16 means.
CPU_VARIABLES = {"VLLM_CPU_INT4_W4A8": "0"}

SERVE = """\
#!/bin/sh
# Serve this folder with vLLM {version} on {target}. Further arguments go to vLLM.
#   HOST (default 127.0.0.1), PORT (default 8000), PYTHON (default python, the one that has vLLM)
set -e
folder="$(cd "$(dirname "$0")" && pwd)"
{exports}exec "${{PYTHON:-python}}" -m {module} --model "$folder" \\
    --host "${{HOST:-127.0.0.1}}" --port "${{PORT:-8000}}" {arguments} "$@"
"""


def engine_arguments(tensor_parallel: int) -> list[str]:
    """Arguments without which the folder would not be served as it was checked."""
    return ["--tensor-parallel-size", str(tensor_parallel)] if tensor_parallel > 1 else []


def write_launch_files(folder: Path, name: str, report: ExportReport, target: Target) -> None:
    """Write serve.sh, compose.yaml and engine_args.json into `folder`, to be served as `name`.

    Raises:
        OutputError: the disk is full or read-only.
    """
    served = ["--served-model-name", name, *report.arguments]
    write_text(folder / "serve.sh", serve_script(served, target))
    (folder / "serve.sh").chmod(0o755)
    write_text(folder / "compose.yaml", compose_file(served, target, report.tensor_parallel))
    settings = {
        "engine": report.engine,
        "engine_version": report.engine_version,
        "arguments": report.arguments,
        "kernel_expected": report.kernel,
        "target": report.target,
    }
    write_json(folder / "engine_args.json", settings)


def serve_script(arguments: Sequence[str], target: Target) -> str:
    """A POSIX shell script that replaces itself with the server."""
    variables = CPU_VARIABLES if target.capability is None else {}
    exports = "".join(f'export {key}="${{{key}:-{value}}}"\n' for key, value in variables.items())
    return SERVE.format(
        version=VLLM, target=target, module=MODULE, exports=exports, arguments=shlex.join(arguments)
    )


def compose_file(arguments: Sequence[str], target: Target, devices: int) -> str:
    """A compose file that serves the folder it lies in, read-only, on the host's loopback."""
    gpu = target.capability is not None
    found = service(
        GPU_IMAGE if gpu else CPU_IMAGE,
        # Inside the container every interface; the port is bound to the host's loopback alone.
        ["--model", "/model", "--host", "0.0.0.0", "--port", "8000", *arguments],
        {"VLLM_NO_USAGE_STATS": "1", **({} if gpu else CPU_VARIABLES)},
        devices if gpu else 0,
    )
    found["entrypoint"] = ["python3", "-m", MODULE]
    return yaml.safe_dump({"services": {"vllm": found}}, sort_keys=False)


def service(
    image: str, command: Sequence[str], environment: Mapping[str, str], devices: int
) -> dict[str, Any]:
    """A service of a compose file: the folder that it lies in at /model, port 8000 on the host's loopback.

    Args:
        image: of the server.
        command: for it.
        environment: variables beside the one that keeps it from looking for the model elsewhere.
        devices: NVIDIA GPUs; 0 for none.
    """
    found: dict[str, Any] = {
        "image": image,
        "command": list(command),
        "ports": ["127.0.0.1:8000:8000"],
        "volumes": [{"type": "bind", "source": ".", "target": "/model", "read_only": True}],
        "environment": {"HF_HUB_OFFLINE": "1", **environment},
        # Workers exchange tensors through shared memory, of which a container has 64 MB by default.
        "shm_size": "8gb",
        "healthcheck": {
            "test": ["CMD", "python3", "-c", _PROBE],
            "interval": "10s",
            "timeout": "5s",
            "retries": 3,
            "start_period": "15m",
        },
        "restart": "unless-stopped",
    }
    if devices:
        device = {"driver": "nvidia", "count": devices, "capabilities": ["gpu"]}
        found["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    return found


_PROBE = "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"
