"""A real model for the real engine; `make test` provides both.

QDEPLOY_TEST_MODEL   a 16-bit model folder with tokenizer (`make test` imports SmolLM2-135M-Instruct)
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model() -> Path:
    folder = os.environ.get("QDEPLOY_TEST_MODEL")
    if not folder:
        pytest.skip("QDEPLOY_TEST_MODEL names no model folder; run `make test`")
    return Path(folder)


def qdeploy(*arguments: str | Path, expect: int = 0) -> "subprocess.CompletedProcess[str]":
    """The command as a user runs it."""
    command = [sys.executable, "-m", "qdeploy", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == expect, result.stdout + result.stderr
    return result


@pytest.fixture(scope="session")
def checkpoint(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model at W4A16 by GPTQ, on few samples."""
    out = tmp_path_factory.mktemp("quantized") / "w4a16"
    data = ["--samples", "8", "--sequence-length", "256"]
    qdeploy("quantize", model, "--scheme", "W4A16", "--group-size", "auto", *data, "-o", out)
    return out


@pytest.fixture(scope="session")
def deploy(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint, exported for vLLM on this machine."""
    out = tmp_path_factory.mktemp("exported") / "w4a16"
    qdeploy("export", checkpoint, "--engine", "vllm", "-o", out)
    return out
