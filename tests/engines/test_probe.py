"""The probe against servers with and without each capability."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qdeploy.engines.endpoint import Endpoint
from qdeploy.engines.probe import Capabilities, probe
from qdeploy.errors import EndpointError

Serve = Callable[..., str]


def _probe(url: str) -> Capabilities:
    with Endpoint(url) as endpoint:
        return probe(endpoint)


def test_a_full_server(serve: Serve) -> None:
    found = _probe(serve(max_logprobs=300))
    assert (found.engine, found.version, found.max_model_len) == ("tiny", "0.0.1", 512)
    assert found.prompt_logprobs
    assert found.top_k == 256
    assert found.chosen_logprobs
    assert found.cache_block == 16
    assert found.usage
    assert found.stream_usage
    assert found.continuous_usage
    assert found.reasons == {}
    found.require_prompt_logprobs()


def test_servers_that_ignore_listed_candidates_are_found(serve: Serve) -> None:
    found = _probe(serve(listed=False))
    assert not found.listed_logprobs
    assert "by token id" in found.reasons["listed_logprobs"]


def test_the_limit_of_top_k_is_found(serve: Serve) -> None:
    found = _probe(serve(max_logprobs=20))
    assert found.top_k == 20
    assert set(found.reasons) == {"top_k=256", "top_k=128"}


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [({"chosen": False}, "Scale-out endpoints are disabled"), ({"mixed_up": True}, "of other tokens")],
)
def test_chosen_logprobs_that_cannot_be_had_or_trusted(
    serve: Serve, behaviour: dict[str, bool], reason: str
) -> None:
    found = _probe(serve(**behaviour))
    assert found.top_k == 20 and not found.chosen_logprobs
    assert reason in found.reasons["chosen_logprobs"]


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ({"chosen": False}, "--enable-scale-out"),
        ({"tells_cached": False}, "or does not tell"),
        ({"stale": True}, "scores a prompt's end differently"),
    ],
)
def test_ends_after_cached_beginnings_that_cannot_be_had_or_trusted(
    serve: Serve, behaviour: dict[str, bool], reason: str
) -> None:
    found = _probe(serve(**behaviour))
    assert found.prompt_logprobs and not found.cache_block
    assert reason in found.reasons["cache_block"]


@pytest.mark.parametrize("block", [32, 64, 128])
def test_the_size_of_the_caches_blocks_is_found(serve: Serve, block: int) -> None:
    assert _probe(serve(block=block)).cache_block == block


def test_blocks_longer_than_any_beginning_count_for_none(serve: Serve) -> None:
    found = _probe(serve(block=256))
    assert found.cache_block == 0 and "from the cache" in found.reasons["cache_block"]


def test_a_server_can_be_probed_again(serve: Serve) -> None:
    url = serve()
    assert [_probe(url).cache_block for _ in range(2)] == [16, 16]


def test_no_prompt_logprobs_is_said_before_any_scoring(serve: Serve) -> None:
    found = _probe(serve(prompt_logprobs=False))
    assert not found.prompt_logprobs
    assert found.top_k == 0
    assert found.usage
    with pytest.raises(EndpointError, match=r"tiny on tiny cannot score prompts.*chance-level"):
        found.require_prompt_logprobs()


def test_a_refused_key_is_no_missing_capability(serve: Serve) -> None:
    with pytest.raises(EndpointError, match="wrong API key"):
        _probe(serve(key="secret"))


def test_an_unknown_model_is_no_missing_capability(serve: Serve) -> None:
    with Endpoint(serve(), model="gpt") as endpoint, pytest.raises(EndpointError, match="It serves: tiny"):
        probe(endpoint)
