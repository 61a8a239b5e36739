"""The files that start TensorRT-LLM: serve.sh, compose.yaml and llm_args.yaml."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from qdeploy.exporters.algorithms import TENSORRT_LLM
from qdeploy.exporters.base import ExportReport
from qdeploy.exporters.launch import service
from qdeploy.files import write_json, write_text

IMAGE = f"nvcr.io/nvidia/tensorrt-llm/release:{TENSORRT_LLM}"
OPTIONS = "llm_args.yaml"

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


def write_launch_files(folder: Path, report: ExportReport, *, cache_in_fp8: bool) -> None:
    """Write them into `folder`.

    Raises:
        OutputError: the disk is full or read-only.
    """
    script = SERVE.format(target=report.target, options=OPTIONS, arguments=shlex.join(report.arguments))
    write_text(folder / "serve.sh", script)
    (folder / "serve.sh").chmod(0o755)
    options: dict[str, Any] = {"kv_cache_config": {"free_gpu_memory_fraction": 0.9}}
    if cache_in_fp8:
        options["kv_cache_config"]["dtype"] = "fp8"
    write_text(folder / OPTIONS, yaml.safe_dump(options, sort_keys=False))
    write_text(folder / "compose.yaml", compose_file(report.arguments, report.tensor_parallel))
    write_json(folder / "export.json", report.to_dict())


def compose_file(arguments: Sequence[str], devices: int) -> str:
    """A compose file that serves the folder it lies in, read-only, on the host's loopback."""
    command = ["trtllm-serve", "serve", "/model", "--host", "0.0.0.0", "--port", "8000"]
    command += ["--extra_llm_api_options", f"/model/{OPTIONS}", *arguments]
    found = service(IMAGE, command, {}, devices)
    found["ulimits"] = {"memlock": -1, "stack": 67108864}
    return yaml.safe_dump({"services": {"tensorrt-llm": found}}, sort_keys=False)
