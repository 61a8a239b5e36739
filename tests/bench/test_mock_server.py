"""The mock server, seen by another HTTP client than ours."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from qdeploy.bench.load.client.mock_server import Pace, identity, mock_server
from qdeploy.engines.endpoint import Endpoint

MODULE = "qdeploy.bench.load.client.mock_server"
USAGE = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with mock_server(Pace(first_token_s=0.1, gap_s=0.02, tokens_per_event=2)) as found:
        yield found


def stream(url: str, body: dict[str, Any]) -> list[tuple[float, dict[str, Any]]]:
    """Arrival in seconds from the sending, and the message, of each event but [DONE], which must be last."""
    start, events = time.monotonic(), []
    with httpx.stream("POST", url, json=body) as response:
        assert response.headers["content-type"] == "text/event-stream"
        lines = [(time.monotonic() - start, line) for line in response.iter_lines() if line]
    assert lines.pop()[1] == "data: [DONE]"
    for at, line in lines:
        events.append((at, json.loads(line.removeprefix("data: "))))
    return events


def test_pace_and_counts(url: str) -> None:
    events = stream(f"{url}/completions", {"prompt": [1, 2, 3], "max_tokens": 5, **USAGE})
    assert [e["usage"]["completion_tokens"] for _, e in events] == [2, 4, 5, 5]
    assert {e["usage"]["prompt_tokens"] for _, e in events} == {3}
    assert [e["choices"][0]["text"] for _, e in events if e["choices"]] == [" 0", " 1", " 2"]
    assert events[0][0] >= 0.1
    assert events[2][0] >= 0.14
    stamps = events[0][1]["mock"]
    assert stamps["sent_ns"] - stamps["read_ns"] >= 99e6


def test_chat(url: str) -> None:
    events = stream(
        f"{url}/chat/completions", {"messages": [{"role": "user", "content": "a b"}], "max_tokens": 2}
    )
    assert [e["choices"][0]["delta"]["content"] for _, e in events] == [" 0"]


def test_events_carry_the_identity_of_their_request(url: str) -> None:
    body = json.dumps({"prompt": "a", "max_tokens": 4}).encode()
    text = httpx.post(f"{url}/completions", content=body).text
    assert text.count(f'"id":"{identity(body)}"') == 2


def test_it_is_an_endpoint(url: str) -> None:
    with Endpoint(url) as endpoint:
        assert endpoint.model == "mock"
        assert endpoint.tokenize("two words") == [0, 1]
        assert endpoint.get_optional("/nothing") is None
    assert "vllm:num_requests_running{" in httpx.get(url.removesuffix("/v1") + "/metrics").text


def test_it_is_up_in_a_moment() -> None:
    """It is started before every load: nothing heavy is imported, and nothing twice."""
    heavy = "{'numpy', 'httpx', 'pydantic'}"
    check = f"import sys, {MODULE}; assert not {heavy} & sys.modules.keys()"
    subprocess.run([sys.executable, "-W", "error", "-c", check], check=True)


def test_it_ends_with_whoever_started_it() -> None:
    command = [sys.executable, "-W", "error", "-m", MODULE, "--until-stdin-ends"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        url = process.stdout.readline().strip()
        assert httpx.get(f"{url}/models").status_code == 200
        process.stdin.close()
        assert process.wait(10) == 0
