"""Tiny random models behind a real HTTP server that speaks vLLM's prompt log-probabilities."""

from __future__ import annotations

import base64
import io
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from qdeploy.engines.endpoint import Endpoint
from tests.conftest import save_tiny

VOCABULARY = 1024
CONTEXT = 256
BLOCK = 8


class TinyServer(ThreadingHTTPServer):
    """Serves one model; counts the sequences it was asked to score.

    Attributes:
        known: beginnings of prompts in its cache, each with its salt.
        cached: tokens that it had there, of each prompt that was to read it.
        drops_rows: gives no rows of cached positions, as vLLM's V2 runner; else of what is in memory, as V1.
    """

    daemon_threads = True

    def __init__(self, folder: Path, model: Any, max_model_len: int = CONTEXT) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.model, self.max_model_len = folder, model, max_model_len
        self.scored: list[list[int]] = []
        self.logprobs = True
        self.chosen = True
        self.known: set[tuple[str, tuple[int, ...]]] = set()
        self.cached: list[int] = []
        self.drops_rows = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Serving in a thread of its own."""
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        yield self
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: TinyServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        card = {"id": "tiny", "root": str(self.server.folder), "max_model_len": self.server.max_model_len}
        answers = {"/v1/models": {"data": [card]}, "/version": {"version": "0"}}
        self._send(200 if self.path in answers else 404, answers.get(self.path, {}))

    def do_POST(self) -> None:
        torch.set_num_threads(1)  # a setting of each thread
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/inference/v1/generate":
            return self._generate(body)
        prompts = body["prompt"]
        if body.get("stream") or isinstance(prompts, str):
            return self._send(400, {"error": {"message": "ids only, no streams"}})
        prompts = prompts if isinstance(prompts[0], list) else [prompts]
        choices = [self._choice(index, ids, body) for index, ids in enumerate(prompts)]
        return self._send(200, {"choices": choices, "usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    def _generate(self, body: dict[str, Any]) -> None:
        """vLLM's way to score chosen ids, and the end of a prompt."""
        if not self.server.chosen:
            return self._send(403, {"error": {"message": "Scale-out endpoints are disabled."}})
        if body["sampling_params"].get("skip_reading_prefix_cache") is False:
            return self._end(body)
        return self._chosen(body)

    def _end(self, body: dict[str, Any]) -> None:
        """Rows of what was not cached; the cache goes by blocks, and never holds the whole prompt."""
        ids, k = body["token_ids"], body["sampling_params"]["prompt_logprobs"]
        blocks = [(body["cache_salt"], tuple(ids[:end])) for end in range(BLOCK, len(ids), BLOCK)]
        cached = BLOCK * sum(1 for _ in itertools.takewhile(self.server.known.__contains__, blocks))
        self.server.known.update(blocks)
        self.server.cached.append(cached)
        rows = self._choice(0, ids, {"prompt": ids, "echo": True, "prompt_logprobs": k})["prompt_logprobs"]
        if self.server.drops_rows:
            rows = [None, *rows[cached + 1 :]]
        else:
            rows[1 : cached + 1] = [{"-7": {"logprob": 1e30}}] * cached
        usage = {"prompt_tokens_details": {"cached_tokens": cached}}
        self._send(200, {"choices": [{}], "prompt_logprobs": rows, "usage": usage})

    def _chosen(self, body: dict[str, Any]) -> None:
        """An .npy file in base64, one row a prompt position."""
        ids, asked = body["token_ids"], body["sampling_params"]
        rows = torch.tensor(asked["prompt_logprob_token_ids"])
        start = asked["prompt_logprob_start"]
        if len(rows) != len(ids) - 1 - start:
            return self._send(400, {"error": {"message": f"{len(rows)} rows for {len(ids)} tokens"}})
        logprobs = exact_logprobs(self.server.model, ids)[start:-1].gather(1, rows)
        file = io.BytesIO()
        np.save(file, logprobs.numpy())
        answer = self._choice(0, ids, {"prompt_logprobs": asked["prompt_logprobs"]})
        answer |= {"prompt_token_id_logprobs": base64.b64encode(file.getvalue()).decode()}
        return self._send(200, answer)

    def _sampled(self, index: int, ids: list[int], body: dict[str, Any]) -> dict[str, Any]:
        """Token by token from the model's own distribution."""
        random, tokens = torch.Generator().manual_seed(body["seed"]), list(ids)
        assert (body["temperature"], body["top_p"], body["top_k"]) == (1.0, 1.0, -1)
        for _ in range(body["max_tokens"]):
            p = exact_logprobs(self.server.model, tokens)[-1].exp()
            tokens.append(int(torch.multinomial(p, 1, generator=random)))
        return {"index": index, "text": "", "token_ids": tokens[len(ids) :]}

    def _choice(self, index: int, ids: list[int], body: dict[str, Any]) -> dict[str, Any]:
        if body.get("return_token_ids"):
            return self._sampled(index, ids, body)
        if not self.server.logprobs:
            return {"index": index, "text": "", "logprobs": None}
        logprobs = exact_logprobs(self.server.model, ids)
        rows, own = logprobs.tolist(), [None]
        own += [rows[i][token] for i, token in enumerate(ids[1:])]
        if "prompt_logprobs" in body:
            self.server.scored.append(ids)
            top = logprobs.topk(body["prompt_logprobs"], dim=-1).indices.tolist()
            entries = [
                {str(token): {"logprob": rows[i][token]} for token in {ids[i + 1], *top[i]}}
                for i in range(len(ids) - 1)
            ]
            return {"index": index, "text": "", "prompt_logprobs": [None, *entries]}
        self.server.scored.append(ids)
        best = [None, *({"best": max(row)} for row in rows[:-1])]
        generated = {"generated": max(rows[-1])}
        return {
            "index": index,
            "text": "",
            "logprobs": {
                "tokens": [f"token_id:{token}" for token in [*ids, 0]],
                "token_logprobs": [*own, max(rows[-1])],
                "top_logprobs": [*best, generated],
            },
        }

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        payload = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: Any) -> None:
        """Keep the test's output clean."""


@torch.inference_mode()
def exact_logprobs(model: Any, ids: list[int]) -> torch.Tensor:
    """float32 [T, V]: log-probabilities of the token after each position."""
    return torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), -1)


Serve = Callable[..., TinyServer]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("served"), "llama", vocab_size=VOCABULARY)


@pytest.fixture(scope="session")
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def perturbed(folder: Path) -> Any:
    """The same model with noise on its weights: a stand-in for a quantized one."""
    other = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return other


@pytest.fixture(scope="session")
def serve(folder: Path) -> Iterator[Serve]:
    """model → a running server."""
    with ExitStack() as servers:
        yield lambda model, **options: servers.enter_context(TinyServer(folder, model, **options).running())


@contextmanager
def endpoint(server: TinyServer) -> Iterator[Endpoint]:
    with Endpoint(server.url, api_key="") as client:
        yield client
