"""A real model behind the part of the OpenAI API that `verify` uses: scoring a prompt with `echo`."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from qdeploy.bench.reference import token_logprobs


class _Handler(BaseHTTPRequestHandler):
    model: Any
    lock = threading.Lock()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._send(200, {"data": [{"id": "tiny", "max_model_len": 256}]})
        else:
            self._send(404, {})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if request.get("stream") or not request.get("echo") or request.get("logprobs") is None:
            self._send(400, {"error": {"message": "only echo with logprobs"}})
            return
        with self.lock:
            values = [None, *token_logprobs(self.model, request["prompt"]).tolist(), -1.0]
        self._send(200, {"choices": [{"logprobs": {"token_logprobs": values}}]})

    def _send(self, status: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serve(model: Any) -> Iterator[str]:
    """The base URL of a server that scores with `model` while the block runs."""
    handler = type("Handler", (_Handler,), {"model": model})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()
