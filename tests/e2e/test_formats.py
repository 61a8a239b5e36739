"""One set of codes in several formats: the real engine computes the same with each."""

import json
from pathlib import Path

import pytest

from qdeploy.engines.endpoint import Endpoint
from qdeploy.engines.vllm import VllmEngine
from qdeploy.errors import EngineError
from tests.e2e.conftest import qdeploy

pytestmark = pytest.mark.e2e

TOKENS = [(7 * i * i + 13) % 40_000 for i in range(200)]
"""Any will do."""


def served(folder: Path, log: Path, *, verify: bool = False) -> list[float | None]:
    """Log-probabilities of TOKENS, by vLLM; if asked, `verify` must find them right."""
    with VllmEngine().launch(folder, log=log, arguments=["--max-model-len", "1024"]) as engine:
        if verify:
            result = json.loads(qdeploy("verify", folder, "--url", engine.base_url, "--json").stdout)
            assert result["verify"]["verdict"] == "pass"
            assert result["verify"]["layers_checked"] == 210
        with Endpoint(engine.base_url) as endpoint:
            return endpoint.score(TOKENS).token_logprobs


def test_symmetric_layers_compute_the_same_in_every_format(checkpoint: Path, tmp_path: Path) -> None:
    expected = served(checkpoint, tmp_path / "log")
    assert len(expected) == len(TOKENS)
    for name in ("gptq", "gptq_v2", "awq"):
        qdeploy("convert", checkpoint, "--to", name, "-o", tmp_path / name)
        qdeploy("lint", tmp_path / name, "--deep", "--engine", "vllm", "--device", "cpu")
        assert served(tmp_path / name, tmp_path / f"{name}.log") == expected


@pytest.mark.parametrize(("scheme", "name"), [("W8A16", "gptq"), ("NVFP4A16", "compressed-tensors")])
def test_what_the_linter_refuses_does_not_start(model: Path, tmp_path: Path, scheme: str, name: str) -> None:
    folder, size = tmp_path / "packed", ["--group-size", "64"] if scheme == "W8A16" else []
    qdeploy("quantize", model, "--method", "rtn", "--scheme", scheme, *size, "-o", folder)
    if name != "compressed-tensors":
        qdeploy("convert", folder, "--to", name, "-o", tmp_path / name)
        folder = tmp_path / name
    refused = qdeploy("lint", folder, "--engine", "vllm", "--device", "cpu", expect=1)
    assert "QD603" in refused.stderr + refused.stdout
    with pytest.raises(EngineError), VllmEngine().launch(folder, log=tmp_path / "log"):
        pass


@pytest.mark.parametrize(
    ("scheme", "name"), [(["W4A16_ASYM", "--group-size", "auto"], "awq"), (["FP8_DYNAMIC"], "modelopt")]
)
def test_others_compute_the_same_where_vllm_reads_them(
    model: Path, tmp_path: Path, scheme: list[str], name: str
) -> None:
    qdeploy("quantize", model, "--method", "rtn", "--scheme", *scheme, "-o", tmp_path / "packed")
    qdeploy("convert", tmp_path / "packed", "--to", name, "-o", tmp_path / name)
    expected = served(tmp_path / "packed", tmp_path / "packed.log")
    assert served(tmp_path / name, tmp_path / f"{name}.log", verify=True) == expected
