"""The tiny model's server, which here also generates, lists candidates, fails and dies as a test says."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from qdeploy.bench.accuracy.journal import Journal
from qdeploy.bench.tokenizer import Encoder, encoder_of
from qdeploy.engines.endpoint import Endpoint
from tests.bench.evaluation.conftest import TinyServer, _Handler, exact_logprobs, folder, model
from tests.conftest import byte_tokenizer

__all__ = ["folder", "model"]


class AskedServer(TinyServer):
    """Notes what it is asked.

    Attributes:
        statuses: HTTP statuses to answer with before anything else.
        dies_after: completions after which it breaks every connection; None: never.
        interrupts_after: completions after which Ctrl-C is pressed, once.
        lists: knows `logprob_token_ids`; stops: knows `stop`.
        top: most log-probabilities of a generated token.
    """

    def __init__(self, folder: Path, model: Any, **options: Any) -> None:
        super().__init__(folder, model, **options)
        self.RequestHandlerClass = _AskedHandler  # type: ignore[assignment]
        self.asked: list[dict[str, Any]] = []
        self.statuses: list[int] = []
        self.dies_after: int | None = None
        self.interrupts_after: int | None = None
        self.lists, self.top, self.delay_s = True, 20, 0.0
        self.stops = True
        self.in_flight = self.peak = 0
        self.lock = threading.Lock()


class _AskedHandler(_Handler):
    server: AskedServer

    def do_POST(self) -> None:
        with self.server.lock:
            self.server.in_flight += 1
            self.server.peak = max(self.server.peak, self.server.in_flight)
            number = len(self.server.asked)
            status = self.server.statuses.pop(0) if self.server.statuses else None
        if number == self.server.interrupts_after:
            self.server.interrupts_after = None
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        try:
            time.sleep(self.server.delay_s)
            if self.server.dies_after is not None and number >= self.server.dies_after:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
            elif status is not None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self._send(status, {"error": {"message": "as told"}})
            else:
                super().do_POST()
        except (OSError, ValueError):
            self.close_connection = True
        finally:
            with self.server.lock:
                self.server.in_flight -= 1

    def _choice(self, index: int, ids: list[int], body: dict[str, Any]) -> dict[str, Any]:
        with self.server.lock:
            self.server.asked.append(body)
        if body.get("echo") or "prompt_logprobs" in body:
            choice = super()._choice(index, ids, body)
            if not body.get("logprobs") and choice.get("logprobs"):
                choice["logprobs"]["top_logprobs"] = None
            return choice
        tokens, text = self._generated(ids, body)
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": "stop"}
        if body.get("logprobs") is not None:
            row = exact_logprobs(self.server.model, ids)[-1]
            listed = body.get("logprob_token_ids") if self.server.lists else None
            wanted = {
                *(listed or row.topk(min(body["logprobs"], self.server.top)).indices.tolist()),
                tokens[0],
            }
            choice["logprobs"] = {
                "tokens": [f"token_id:{token}" for token in tokens],
                "top_logprobs": [{f"token_id:{token}": float(row[token]) for token in sorted(wanted)}],
            }
        return choice

    def _generated(self, ids: list[int], body: dict[str, Any]) -> tuple[list[int], str]:
        """Greedy text before the first stop sequence; of the byte tokenizer's tokens only."""
        tokenizer, written = byte_tokenizer(), list(ids)
        for _ in range(body["max_tokens"]):
            written.append(int(exact_logprobs(self.server.model, written)[-1][:256].argmax()))
            text = tokenizer.decode(written[len(ids) :])
            for stop in (body.get("stop") or ()) if self.server.stops else ():
                if stop in text:
                    return written[len(ids) :], text.split(stop)[0]
        return written[len(ids) :], tokenizer.decode(written[len(ids) :])


Ask = Callable[..., AskedServer]


@pytest.fixture
def ask(folder: Path, model: Any) -> Iterator[Ask]:
    """Options → a running server of the tiny model."""
    with ExitStack() as servers:
        yield lambda **options: servers.enter_context(AskedServer(folder, model, **options).running())


@pytest.fixture
def encoder() -> Encoder:
    return encoder_of(byte_tokenizer())


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "answers.jsonl", {"name": "tiny"}) as opened:
        yield opened


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdeploy.engines.transport.BACKOFF_S", 0.001)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place of the test's own for what `datasets` caches."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub")
    return tmp_path


def write_task(folder: Path, docs: list[dict[str, Any]], **config: Any) -> Path:
    """A YAML task over local documents."""
    data = folder / f"{config['task']}.jsonl"
    data.write_text("\n".join(json.dumps(doc) for doc in docs))
    settings = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "metadata": {"version": 1.0},
        **config,
    }
    path = folder / f"{config['task']}.yaml"
    path.write_text(json.dumps(settings))  # JSON is YAML
    return path


def client(server: AskedServer) -> Endpoint:
    return Endpoint(server.url, api_key="")
