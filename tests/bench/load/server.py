"""A real HTTP server with the OpenAI API and delays that a test programs."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Behaviour:
    """What the server does; a test changes it between requests."""

    first_token_s: float = 0.0
    gap_s: float = 0.0
    tokens_per_chunk: int = 1
    running_usage: bool = True
    api_key: str | None = None
    token_ids: bool = True
    tokenize: bool = True
    completions: bool = True
    refused_fields: tuple[str, ...] = ()
    max_model_len: int = 2048
    usage: bool = True
    fail: dict[int, str] = field(default_factory=dict)
    """Number of the request (those for one token not counted) → "status", "error", "cut" or "hang"."""
    slots: int | None = None
    """Requests that are worked on at once; the others wait."""
    metrics: bool = False
    """Whether there is a Prometheus page, and a cache of prompt prefixes behind it."""
    dev_mode: bool = False
    length: float = 1.0
    """Answers have this part of the tokens asked for, unless `ignore_eos`."""
    stall: tuple[int, float] | None = None
    """(n, seconds): on the n-th request the whole server stands still once."""


class Server:
    """Serves on a thread of its own; knows what it was sent and how much was in flight."""

    def __init__(self) -> None:
        self.behaviour = Behaviour()
        self.payloads: list[dict[str, Any]] = []
        self.arrivals: list[float] = []
        self.in_flight = self.peak_in_flight = 0
        self.cached: set[tuple[int, ...]] = set()
        self.queries = self.hits = 0
        self._semaphore: asyncio.Semaphore | None = None
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    def stop_after(self, payloads: int) -> None:
        """Stop, on another thread, once so many have been sent."""

        def wait() -> None:
            while len(self.payloads) < payloads:
                time.sleep(0.005)
            self.stop()

        threading.Thread(target=wait, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def _serve(self) -> None:
        self._loop.run_until_complete(self._run())

    async def _run(self) -> None:
        self._stop = asyncio.Event()
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/version", self._version)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/reset_prefix_cache", self._reset)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/v1/chat/completions", self._complete)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self._port = runner.addresses[0][1]
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        self._check_key(request)
        return web.json_response({"data": [{"id": "toy", "max_model_len": self.behaviour.max_model_len}]})

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "1.2.3"})

    async def _metrics(self, _: web.Request) -> web.Response:
        if not self.behaviour.metrics:
            raise web.HTTPNotFound
        return web.Response(
            text="# HELP vllm:num_requests_running Number of requests.\n"
            f'vllm:num_requests_running{{engine="0",model_name="to}}y"}} {float(self.in_flight)}\n'
            f'vllm:prefix_cache_queries_total{{engine="0"}} {float(self.queries)}\n'
            f'vllm:prefix_cache_hits_total{{engine="0"}} {float(self.hits)}\n'
        )

    async def _reset(self, _: web.Request) -> web.Response:
        if not self.behaviour.dev_mode:
            raise web.HTTPNotFound
        self.cached.clear()
        return web.Response()

    def _look_up(self, prompt: list[int]) -> None:
        """Serve the prompt from the cache of blocks of 16 tokens, and put it there."""
        openings = [tuple(prompt[: i + 16]) for i in range(0, len(prompt) - 15, 16)]
        self.queries += len(prompt)
        self.hits += 16 * sum(opening in self.cached for opening in openings)
        self.cached.update(openings)

    async def _tokenize(self, request: web.Request) -> web.Response:
        if not self.behaviour.tokenize:
            raise web.HTTPNotFound
        body = await request.json()
        ids = [100 + i for i in range(len(body["prompt"].split()))]
        return web.json_response({"tokens": [1, *ids] if body["add_special_tokens"] else ids})

    def _check_key(self, request: web.Request) -> None:
        key = self.behaviour.api_key
        if key and request.headers.get("Authorization") != f"Bearer {key}":
            raise web.HTTPUnauthorized(text=json.dumps({"error": {"message": "wrong key"}}))

    def _check_body(self, path: str, body: dict[str, Any]) -> None:
        if path == "/v1/completions" and not self.behaviour.completions:
            raise web.HTTPNotFound
        refused = [name for name in self.behaviour.refused_fields if name in body]
        if refused or (isinstance(body.get("prompt"), list) and not self.behaviour.token_ids):
            raise web.HTTPBadRequest(text=f"extra fields not permitted: {refused}")

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        arrived = time.monotonic()
        body = await request.json()
        self._check_key(request)
        self._check_body(request.path, body)
        measured = body["max_tokens"] > 1
        number = sum(p["max_tokens"] > 1 for p in self.payloads) if measured else -1
        self.payloads.append(body)
        self.arrivals.append(arrived)
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        if isinstance(body.get("prompt"), list):
            self._look_up(body["prompt"])
        try:
            async with self._slots():
                return await self._answer(request, body, number)
        finally:
            self.in_flight -= 1

    def _slots(self) -> asyncio.Semaphore:
        if self._semaphore is None:
            self._semaphore = asyncio.Semaphore(self.behaviour.slots or 10**6)
        return self._semaphore

    async def _answer(self, request: web.Request, body: dict[str, Any], number: int) -> web.StreamResponse:
        if body["stream"]:
            return await self._stream(request, body, self.behaviour.fail.get(number, ""), number)
        await asyncio.sleep(self.behaviour.first_token_s)
        *chunks, last = self._chunks(body, "messages" in body)
        return web.json_response({"choices": [{"text": "é" * len(chunks)}], "usage": last["usage"]})

    async def _stream(
        self, request: web.Request, body: dict[str, Any], failure: str, number: int
    ) -> web.StreamResponse:
        if self.behaviour.stall and number == self.behaviour.stall[0]:
            time.sleep(self.behaviour.stall[1])
        if failure == "status":
            raise web.HTTPServiceUnavailable(text="overloaded")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await asyncio.sleep(30 if failure == "hang" else self.behaviour.first_token_s)
        for chunk in self._chunks(body, "messages" in body):
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
            if failure == "cut":
                request.transport.abort()  # type: ignore[union-attr]
            if failure == "error":
                await response.write(b'data: {"error": {"message": "out of memory"}}\n\n')
            await asyncio.sleep(self.behaviour.gap_s)
        await response.write(b"data: [DONE]\n\n")
        return response

    def _chunks(self, body: dict[str, Any], chat: bool) -> list[dict[str, Any]]:
        length = 1.0 if body.get("ignore_eos") else self.behaviour.length
        total, step = round(body["max_tokens"] * length), self.behaviour.tokens_per_chunk
        prompt = body.get("prompt") or " ".join(message["content"] for message in body["messages"])
        prompt_tokens = len(prompt if isinstance(prompt, list) else prompt.split()) + 5 * chat
        running = self.behaviour.running_usage and "continuous_usage_stats" in body.get("stream_options", ())
        chunks = [_chunk("", chat)]
        for done in range(min(step, total), total + step, step):
            chunk = _chunk("é" * step, chat)
            if running:
                chunk["usage"] = {"prompt_tokens": prompt_tokens, "completion_tokens": min(done, total)}
            chunks.append(chunk)
        if self.behaviour.usage:
            usage = {"prompt_tokens": prompt_tokens, "completion_tokens": total}
            chunks.append({"choices": [], "usage": usage})
        return chunks


def _chunk(text: str, chat: bool) -> dict[str, Any]:
    if chat:
        return {"choices": [{"delta": {"content": text} if text else {"role": "assistant", "content": None}}]}
    return {"choices": [{"text": text}]}
