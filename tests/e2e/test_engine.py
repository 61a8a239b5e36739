"""Real vLLM under supervision: served, scored, probed, and gone afterwards."""

import math
from pathlib import Path

import psutil
import pytest

from qdeploy.engines.endpoint import Endpoint
from qdeploy.engines.probe import probe
from qdeploy.engines.vllm import VllmEngine

EASY = [504, 2143, 282, 4649, 314] * 4
"""Token ids with a pattern that any language model picks up."""


@pytest.mark.e2e
def test_vllm_serves_a_16_bit_model_and_leaves_no_process(model: Path, tmp_path: Path) -> None:
    with VllmEngine().launch(
        model, log=tmp_path / "engine.log", arguments=["--max-model-len", "512"]
    ) as engine:
        tree = [engine.process.pid]
        tree += [child.pid for child in psutil.Process(engine.process.pid).children(recursive=True)]
        assert len(tree) >= 3
        assert engine.kernel is None
        assert engine.quantization is None
        with Endpoint(engine.base_url) as endpoint:
            found = probe(endpoint)
            plain, deep = endpoint.score_many([EASY, EASY])[0], endpoint.score(EASY, top_k=128)
    assert (found.engine, found.version, found.max_model_len) == ("vllm", engine.version, 512)
    assert found.prompt_logprobs
    assert found.top_k == 256
    assert found.listed_logprobs
    # The CPU build has no runner that scores chosen ids.
    assert found.reasons.keys() <= {"chosen_logprobs"}
    assert plain.total(15) > plain.total(1) - plain.total(6), "the repetition must be likelier"
    assert deep.top is not None
    assert all(0.2 < sum(map(math.exp, row.values())) <= 1.001 for row in deep.top[1:])
    for token, value, row in zip(EASY[1:], deep.token_logprobs[1:], deep.top[1:], strict=True):
        assert row.get(token, value) == value
    assert not any(psutil.pid_exists(pid) for pid in tree)
