"""The client against a real local server with a known model."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from qdeploy.engines.endpoint import Endpoint
from qdeploy.engines.ports import free_port
from qdeploy.errors import EndpointError
from tests.engines.tiny_server import VOCABULARY, logprobs

Serve = Callable[..., str]
IDS = [5, 17, 900, 3, 3, 41]
EXPECTED = [logprobs(a)[b] for a, b in itertools.pairwise(IDS)]


def test_scores_are_the_models_own(serve: Serve) -> None:
    with Endpoint(serve()) as endpoint:
        plain, deep = endpoint.score(IDS), endpoint.score(IDS, top_k=10)
    assert plain.token_logprobs == deep.token_logprobs == [None, *EXPECTED]
    assert plain.top is None
    assert plain.total() == pytest.approx(sum(EXPECTED))
    assert plain.total(4) == pytest.approx(sum(EXPECTED[3:]))


def test_top_is_keyed_by_id_and_holds_the_likeliest(serve: Serve) -> None:
    with Endpoint(serve(max_logprobs=VOCABULARY)) as endpoint:
        few, all_of_them = endpoint.score(IDS, top_k=5).top, endpoint.score(IDS, top_k=VOCABULARY).top
    assert few is not None
    assert all_of_them is not None
    assert few[0] == all_of_them[0] == {}
    for previous, row, whole in zip(IDS, few[1:], all_of_them[1:], strict=False):
        best = sorted(logprobs(previous), reverse=True)[:5]
        assert list(row.values()) == best
        assert all(logprobs(previous)[token] == value for token, value in row.items())
        assert sum(map(math.exp, whole.values())) == pytest.approx(1.0)


def test_many_keep_their_order_and_report_each(serve: Serve) -> None:
    sequences = [[i, i + 1, 2 * i] for i in range(1, 30)]
    seen: list[int] = []
    with Endpoint(serve()) as endpoint:
        scores = endpoint.score_many(
            sequences, top_k=2, concurrency=8, on_done=lambda index, _: seen.append(index)
        )
    assert [score.token_ids for score in scores] == sequences
    assert sorted(seen) == list(range(29))


def test_a_failing_server_is_asked_again(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdeploy.engines.transport.BACKOFF_S", 0.01)
    with Endpoint(serve(failures=3)) as endpoint:
        assert endpoint.score(IDS).token_logprobs[1:] == EXPECTED


def test_attempts_are_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdeploy.engines.transport.BACKOFF_S", 0.01)
    with (
        Endpoint(serve(failures=1000)) as endpoint,
        pytest.raises(EndpointError, match="answered 503 4 times: overloaded"),
    ):
        endpoint.score_many([IDS] * 50)


def test_a_wrong_key_names_the_variable_and_not_the_key(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serve(key="right")
    with pytest.raises(EndpointError, match=r"wrong API key: no key is set\. Set QDEPLOY_API_KEY"):
        Endpoint(url).models()
    monkeypatch.setenv("OPENAI_API_KEY", "wrong-secret")
    with pytest.raises(EndpointError, match="the key given is not accepted") as caught:
        Endpoint(url).models()
    assert "wrong-secret" not in str(caught.value) + repr(Endpoint(url))
    monkeypatch.setenv("QDEPLOY_API_KEY", "right")
    assert Endpoint(url).models() == ["tiny"]


@pytest.mark.parametrize("key", ["cl\u00e9-secret", "secret\nX-Header: 1"])
def test_a_key_that_no_header_can_carry_is_refused_unseen(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("QDEPLOY_API_KEY", key)
    with pytest.raises(EndpointError, match="QDEPLOY_API_KEY holds a line break") as caught:
        Endpoint("http://127.0.0.1:1/v1")
    assert "secret" not in str(caught.value)


class Page(BaseHTTPRequestHandler):
    """A web server that is no API."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>Welcome</html>")


def test_a_web_page_is_no_api() -> None:
    with HTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.handle_request).start()
        with (
            Endpoint(f"http://127.0.0.1:{server.server_port}") as endpoint,
            pytest.raises(
                EndpointError, match=r"/v1/models answered '<html>Welcome</html>', which is no JSON"
            ),
        ):
            endpoint.models()


def test_an_unknown_model_lists_what_is_served(serve: Serve) -> None:
    with pytest.raises(EndpointError, match=r"does not serve 'gpt'\. It serves: tiny"):
        Endpoint(serve(), model="gpt").score(IDS)


def test_nobody_there_is_an_error_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdeploy.engines.transport.BACKOFF_S", 0.01)
    start = time.monotonic()
    with pytest.raises(EndpointError, match=r"Cannot reach http://127\.0\.0\.1:.*Is the server up"):
        Endpoint(f"127.0.0.1:{free_port()}").models()
    assert time.monotonic() - start < 2.0


@pytest.mark.parametrize("top_k", [0, 4])
def test_missing_prompt_logprobs_are_an_error_not_a_zero(serve: Serve, top_k: int) -> None:
    with pytest.raises(EndpointError, match="no log-probabilities of prompt tokens"):
        Endpoint(serve(prompt_logprobs=False)).score(IDS, top_k)


@pytest.mark.parametrize("top_k", [0, 4])
def test_a_server_that_adds_a_bos_is_found_out(serve: Serve, top_k: int) -> None:
    with pytest.raises(EndpointError):
        Endpoint(serve(bos=True)).score(IDS, top_k)


@pytest.mark.parametrize("length", [1, 512])
def test_a_sequence_that_does_not_fit_is_refused_before_it_is_sent(serve: Serve, length: int) -> None:
    with pytest.raises(EndpointError, match=f"A sequence of {length} tokens"):
        Endpoint(serve()).score([1] * length)


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://h:1/v1/", "http://h:1/v1"),
        ("https://h/proxy", "https://h/proxy/v1"),
    ],
)
def test_urls_are_normalized(given: str, base: str) -> None:
    assert Endpoint(given).base_url == base


@pytest.mark.parametrize("url", ["ftp://h/v1", "http://", ""])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(EndpointError, match="is not an HTTP URL"):
        Endpoint(url)
