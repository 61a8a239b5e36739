"""A server that speaks the part of the OpenAI API that qdeploy uses, with a bigram model over 1000 tokens.

Run as `tiny_server.py --model FOLDER --port N`; FOLDER/behaviour.json says how it is to behave:

    prompt_logprobs  false: answers without log-probabilities of the prompt, as trtllm-serve does
    chosen           false: no log-probabilities of chosen ids, as vLLM without --enable-scale-out
    mixed_up         true: those of chosen ids are of others
    listed           false: does not know `logprob_token_ids`
    tells_cached     false: does not tell how much of a prompt it had in its cache
    block            how many tokens go into a block of the cache; 16
    stale            true: what comes after a cached beginning is scored as after another one
    max_logprobs     most log-probabilities per position, 20
    key              refuses requests without this bearer token
    failures         number of requests to answer with 503 first
    log              text to print at the start
    die              exits with this message instead of serving
    never_ready      /health answers 503
    crash            exits with this message at the first completion
    child            starts a process that ignores SIGTERM, in a session of its own, and writes its pid there
    bos              scores a BOS token of its own before the prompt
"""

from __future__ import annotations

import argparse
import base64
import io
import itertools
import json
import math
import os
import subprocess
import sys
import threading
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

VOCABULARY = 1000
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


@cache
def logprobs(previous: int) -> list[float]:
    """ln p(next | previous) for every next token; sums to one."""
    logits = [3.0 * math.sin(previous * 31.0 + token * 17.0) for token in range(VOCABULARY)]
    total = math.log(sum(math.exp(value) for value in logits))
    return [value - total for value in logits]


def prompt_rows(ids: list[int], k: int) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: the k likeliest and the actual token of each position."""
    rows: list[dict[str, Any] | None] = [None]
    for previous, token in itertools.pairwise(ids):
        row = logprobs(previous)
        best = sorted(range(VOCABULARY), key=lambda t: -row[t])[:k]
        rows.append({str(t): {"logprob": row[t], "decoded_token": "\ufffd"} for t in [token, *best]})
    return rows


def echo(ids: list[int]) -> dict[str, Any]:
    """The `logprobs` of a request with `echo` and one generated token."""
    values = [None, *(logprobs(a)[b] for a, b in itertools.pairwise(ids)), -1.0]
    return {"token_logprobs": values, "tokens": [f"token_id:{token}" for token in [*ids, 0]]}


def completion(request: dict[str, Any], behaviour: dict[str, Any]) -> dict[str, Any]:
    """The answer to /v1/completions."""
    prompt = request["prompt"]
    ids = [7] * len(prompt.split()) if isinstance(prompt, str) else list(prompt)
    usage = {"prompt_tokens": len(ids), "completion_tokens": 1, "total_tokens": len(ids) + 1}
    if behaviour.get("bos"):
        ids = [1, *ids]
    choice: dict[str, Any] = {"index": 0, "text": " word", "logprobs": None, "finish_reason": "length"}
    if (listed := request.get("logprob_token_ids")) is not None and behaviour.get("listed", True):
        row = logprobs(ids[-1])
        best = max(range(VOCABULARY), key=row.__getitem__)
        top = {f"token_id:{token}": row[token] for token in {*listed, best}}
        choice["logprobs"] = {"tokens": [f"token_id:{best}"], "top_logprobs": [top]}
    if behaviour.get("prompt_logprobs", True):
        if request.get("echo") and request.get("logprobs") is not None:
            choice["logprobs"] = echo(ids)
        if (k := request.get("prompt_logprobs")) is not None:
            choice["prompt_logprobs"] = prompt_rows(ids, k)
    return {"id": "1", "object": "text_completion", "choices": [choice], "usage": usage}


def generate(request: dict[str, Any], behaviour: dict[str, Any], known: set[Any]) -> dict[str, Any]:
    """The answer to /inference/v1/generate; `known` is the cache of prompts."""
    if "prompt_logprob_token_ids" in request["sampling_params"]:
        return chosen(request, behaviour.get("mixed_up", False))
    ids = request["token_ids"]
    size = behaviour.get("block", 16)
    blocks = [(request["cache_salt"], *ids[:end]) for end in range(size, len(ids), size)]
    cached = size * sum(1 for _ in itertools.takewhile(known.__contains__, blocks))
    known.update(blocks)
    rows = prompt_rows(ids, request["sampling_params"]["prompt_logprobs"])
    if behaviour.get("stale") and cached:
        rows = prompt_rows([*ids[1:], 0], 0)
        rows = [
            row and {str(ids[i]): {"logprob": min(v["logprob"] for v in row.values())}}
            for i, row in enumerate(rows)
        ]
    # Of what was cached nothing is computed; vLLM gives what was in memory.
    rows[:cached] = [{"-7": {"logprob": 1e30}}] * cached
    details = {"cached_tokens": cached} if behaviour.get("tells_cached", True) else None
    return {"choices": [{}], "prompt_logprobs": rows, "usage": {"prompt_tokens_details": details}}


def chosen(request: dict[str, Any], mixed_up: bool) -> dict[str, Any]:
    """The same with `prompt_logprob_token_ids`."""
    ids, parameters = request["token_ids"], request["sampling_params"]
    rows, start = parameters["prompt_logprob_token_ids"], parameters["prompt_logprob_start"]
    values = [[logprobs(ids[start + i])[token] for token in row] for i, row in enumerate(rows)]
    file = io.BytesIO()
    np.save(file, np.array(values, np.float32)[:, :: -1 if mixed_up else 1])
    return {
        "choices": [{"index": 0, "token_ids": [0]}],
        "prompt_logprobs": prompt_rows(ids, parameters["prompt_logprobs"]),
        "prompt_token_id_logprobs": base64.b64encode(file.getvalue()).decode(),
    }


class Handler(BaseHTTPRequestHandler):
    """One request."""

    behaviour: dict[str, Any]
    model: str
    known: ClassVar[set[Any]] = set()
    lock = threading.Lock()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/health":
            self._send(503 if self.behaviour.get("never_ready") else 200, {})
        elif self.path == "/version":
            self._send(200, {"version": "0.0.1"})
        elif not self._allowed():
            self._error(401, "Unauthorized")
        else:
            card = {"id": self.model, "owned_by": "tiny", "max_model_len": 512}
            self._send(200, {"object": "list", "data": [card]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            failing = self.behaviour.get("failures", 0) > 0
            self.behaviour["failures"] = self.behaviour.get("failures", 0) - 1
        if not self._allowed():
            self._error(401, "Unauthorized")
        elif "crash" in self.behaviour:
            print(self.behaviour["crash"], flush=True)
            os._exit(1)
        elif failing:
            self._error(503, "overloaded")
        elif request["model"] != self.model:
            self._error(404, f"The model {request['model']} does not exist")
        elif (request.get("prompt_logprobs") or 0) > self.behaviour.get("max_logprobs", 20):
            self._error(400, "Requested prompt logprobs greater than max allowed")
        elif self.path == "/inference/v1/generate":
            if self.behaviour.get("chosen", True):
                self._send(200, generate(request, self.behaviour, self.known))
            else:
                self._error(403, "Scale-out endpoints are disabled.")
        elif request.get("stream"):
            self._stream(completion(request, self.behaviour), request.get("stream_options") or {})
        else:
            self._send(200, completion(request, self.behaviour))

    def _allowed(self) -> bool:
        key = self.behaviour.get("key")
        return key is None or self.headers.get("Authorization") == f"Bearer {key}"

    def _stream(self, answer: dict[str, Any], options: dict[str, Any]) -> None:
        usage = answer.pop("usage")
        continuous = {"usage": usage} if options.get("continuous_usage_stats") else {}
        events = [json.dumps(answer | continuous)]
        if options.get("include_usage"):
            events.append(json.dumps({"choices": [], "usage": usage}))
        self._write(200, "text/event-stream", "".join(f"data: {e}\n\n" for e in [*events, "[DONE]"]))

    def _error(self, status: int, message: str) -> None:
        self._send(status, {"error": {"message": message, "code": status}})

    def _send(self, status: int, value: dict[str, Any]) -> None:
        self._write(status, "application/json", json.dumps(value))

    def _write(self, status: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Behave as the model folder says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--served-model-name", default="tiny")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    arguments, _ = parser.parse_known_args()
    path = arguments.model / "behaviour.json"
    behaviour = json.loads(path.read_text()) if path.exists() else {}
    print(behaviour.get("log", ""), " ".join(sys.argv[1:]), flush=True)
    if child := behaviour.get("child"):
        process = subprocess.Popen([sys.executable, "-c", STUBBORN], start_new_session=True)
        Path(child).write_text(str(process.pid))
    if "die" in behaviour:
        sys.exit(behaviour["die"])
    Handler.behaviour, Handler.model = behaviour, arguments.served_model_name
    ThreadingHTTPServer((arguments.host, arguments.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
