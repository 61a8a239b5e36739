"""The files that start TensorRT-LLM: serve.sh, compose.yaml, kubernetes.yaml and llm_args.yaml."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from qdeploy.exporters.algorithms import TENSORRT_LLM
from qdeploy.exporters.base import ExportReport
from qdeploy.exporters.compose import compose_file
from qdeploy.exporters.container import MODEL, PORT, Container
from qdeploy.exporters.kubernetes import kubernetes_file
from qdeploy.exporters.memory import TENSORRT_LLM as MEMORY
from qdeploy.files import write_json, write_text

IMAGE = f"nvcr.io/nvidia/tensorrt-llm/release:{TENSORRT_LLM}"
OPTIONS = "llm_args.yaml"
ULIMITS = {"memlock": -1, "stack": 67108864}
"""Of NVIDIA's command for the image: docker/release.md of TensorRT-LLM."""

SERVE = """\
#!/bin/sh
# Serve this folder with TensorRT-LLM on {target}. Further arguments go to trtllm-serve.
#   HOST (default 127.0.0.1), PORT (default 8000)
set -e
folder="$(cd "$(dirname "$0")" && pwd)"
exec trtllm-serve serve "$folder" --host "${{HOST:-127.0.0.1}}" --port "${{PORT:-8000}}" \\
    --extra_llm_api_options "$folder/{options}" {arguments} "$@"
"""


def engine_arguments(tensor_parallel: int) -> list[str]:
    """Arguments without which the folder would not be served as it was checked."""
    return ["--backend", "pytorch", *(["--tp_size", str(tensor_parallel)] if tensor_parallel > 1 else [])]


def write_launch_files(folder: Path, name: str, report: ExportReport, *, cache_in_fp8: bool) -> None:
    """Write them into `folder`, the export's `name` to be.

    Raises:
        OutputError: the disk is full or read-only.
    """
    script = SERVE.format(target=report.target, options=OPTIONS, arguments=shlex.join(report.arguments))
    write_text(folder / "serve.sh", script)
    (folder / "serve.sh").chmod(0o755)
    options: dict[str, Any] = {"kv_cache_config": {"free_gpu_memory_fraction": MEMORY.cache_share}}
    if cache_in_fp8:
        options["kv_cache_config"]["dtype"] = "fp8"
    write_text(folder / OPTIONS, yaml.safe_dump(options, sort_keys=False))
    found = container(report.arguments, report.tensor_parallel, report.weight_bytes)
    write_text(folder / "compose.yaml", compose_file(found))
    write_text(folder / "kubernetes.yaml", kubernetes_file(found, name, report.target))
    write_json(folder / "export.json", report.to_dict())


def container(arguments: Sequence[str], devices: int, weight_bytes: int) -> Container:
    """TensorRT-LLM in a container, for the folder at /model.

    Args:
        arguments: besides model and address.
        devices: that the model is split over.
        weight_bytes: of all weight files.
    """
    command = ["trtllm-serve", "serve", MODEL, "--host", "0.0.0.0", "--port", str(PORT)]
    return Container(
        engine="tensorrt-llm",
        image=IMAGE,
        command=None,
        arguments=[*command, "--extra_llm_api_options", f"{MODEL}/{OPTIONS}", *arguments],
        gpus=devices,
        workers=devices,
        weight_bytes=weight_bytes,
        ulimits=ULIMITS,
    )
