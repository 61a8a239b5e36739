import os
import subprocess
from pathlib import Path

import pytest

from qdeploy.exporters.launch import GPU_IMAGE, container, serve_script
from qdeploy.exporters.memory import CPU_CACHE_GIB
from qdeploy.exporters.targets import GIB, TARGETS


def run_script(tmp_path: Path, target: str, **variables: str) -> dict[str, str]:
    """What the script for the target gives the server in variables of vLLM's."""
    script = tmp_path / "serve.sh"
    script.write_text(serve_script(["--served-model-name", "m"], TARGETS[target]))
    server = tmp_path / "server"
    server.write_text("#!/bin/sh\nenv\n")
    server.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(server), **variables}
    told = subprocess.run(["sh", str(script)], env=environment, capture_output=True, text=True, check=True)
    pairs = (line.partition("=") for line in told.stdout.splitlines())
    return {name: value for name, _, value in pairs if name.startswith("VLLM_")}


def test_a_cpu_gets_a_cache_of_its_own_size(tmp_path: Path) -> None:
    assert run_script(tmp_path, "cpu-avx512") == {
        "VLLM_CPU_INT4_W4A8": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(CPU_CACHE_GIB),
    }
    assert run_script(tmp_path, "cpu-avx2", VLLM_CPU_KVCACHE_SPACE="8")["VLLM_CPU_KVCACHE_SPACE"] == "8"
    assert run_script(tmp_path, "h100") == {}


@pytest.mark.parametrize(("target", "devices"), [("h100", 2), ("cpu-avx512", 2)])
def test_the_container_runs_the_server_as_the_script_does(target: str, devices: int) -> None:
    found = container(["--served-model-name", "m"], TARGETS[target], devices, 5 * GIB)
    gpu = target == "h100"
    assert found.command == ["python3", "-m", "vllm.entrypoints.openai.api_server"]
    assert found.arguments[:2] == ["--model", "/model"]
    assert found.arguments[-2:] == ["--served-model-name", "m"]
    assert (found.image == GPU_IMAGE) == gpu
    assert found.gpus == (devices if gpu else 0)
    assert found.workers == devices
    # Each worker of a CPU has a cache in the machine's memory.
    assert found.cache_bytes == (0 if gpu else devices * CPU_CACHE_GIB * GIB)
    assert ("VLLM_CPU_KVCACHE_SPACE" in found.variables) == (not gpu)
    assert found.variables["HF_HUB_OFFLINE"] == "1"
