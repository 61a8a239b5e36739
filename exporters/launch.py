"""The files that start vLLM: serve.sh, compose.yaml, kubernetes.yaml and engine_args.json."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from qdeploy.exporters.base import ExportReport
from qdeploy.exporters.compose import compose_file
from qdeploy.exporters.container import MODEL, PORT, Container
from qdeploy.exporters.kernels import VLLM
from qdeploy.exporters.kubernetes import kubernetes_file
from qdeploy.exporters.memory import CPU_CACHE_GIB
from qdeploy.exporters.targets import GIB, Target
from qdeploy.files import write_json, write_text

GPU_IMAGE = f"vllm/vllm-openai:v{VLLM}"
CPU_IMAGE = f"qdeploy-vllm-cpu:{VLLM}"
"""Built from docker/vllm-cpu.Dockerfile."""

GPU_USER, CPU_USER = (2000, 0), (10001, 10001)
"""Users of the images, neither of them root: https://github.com/vllm-project/vllm/pull/40275, and useradd in
docker/vllm-cpu.Dockerfile."""

MODULE = "vllm.entrypoints.openai.api_server"
CPU_VARIABLES = {
    # With AMX, vLLM would run 4-bit weights with 8-bit activations, which is not what W4A16 means.
    "VLLM_CPU_INT4_W4A8": "0",
    "VLLM_CPU_KVCACHE_SPACE": str(CPU_CACHE_GIB),
}

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
    """Write them into `folder`, to be served as `name`.

    Raises:
        OutputError: the disk is full or read-only.
    """
    served = ["--served-model-name", name, *report.arguments]
    write_text(folder / "serve.sh", serve_script(served, target))
    (folder / "serve.sh").chmod(0o755)
    found = container(served, target, report.tensor_parallel, report.weight_bytes)
    write_text(folder / "compose.yaml", compose_file(found))
    write_text(folder / "kubernetes.yaml", kubernetes_file(found, name, report.target))
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


def container(arguments: Sequence[str], target: Target, devices: int, weight_bytes: int) -> Container:
    """vLLM in a container, for the folder at /model.

    Args:
        arguments: besides model and address.
        devices: that the model is split over.
        weight_bytes: of all weight files.
    """
    gpu = target.capability is not None
    return Container(
        engine="vllm",
        image=GPU_IMAGE if gpu else CPU_IMAGE,
        command=["python3", "-m", MODULE],
        # Inside the container every interface; who reaches the port is for what starts it to say.
        arguments=["--model", MODEL, "--host", "0.0.0.0", "--port", str(PORT), *arguments],
        environment={"VLLM_NO_USAGE_STATS": "1", **({} if gpu else CPU_VARIABLES)},
        gpus=devices if gpu else 0,
        workers=devices,
        weight_bytes=weight_bytes,
        cache_bytes=0 if gpu else devices * CPU_CACHE_GIB * GIB,
        user=GPU_USER if gpu else CPU_USER,
    )
