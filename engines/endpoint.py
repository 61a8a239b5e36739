"""A client for one served model behind an OpenAI-compatible URL.

Prompts go as token ids, so that no second tokenizer and no BOS come in between. Log-probabilities of the
prompt come from `/v1/completions` (vLLM's `prompt_logprobs`, or `echo` where only the chosen tokens are
wanted). Scoring given token ids at every position exists in vLLM (`prompt_logprob_token_ids` of
`/inference/v1/generate`) but needs its V2 model runner and so Triton, which CPU builds lack: it is not used.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import httpx

from qdeploy.engines.scores import NextToken, Scores, from_completion, from_echo, from_prompt_logprobs
from qdeploy.errors import EndpointError

KEY_VARIABLES = ("QDEPLOY_API_KEY", "OPENAI_API_KEY")
ATTEMPTS = 4
BACKOFF_S = 0.5
"""Wait before the second attempt, give or take half of it; doubled before each further one."""

BUSY = 429

MAX_CONNECTIONS = 64
TOP_LOGPROBS = 20
"""Most log-probabilities of a generated token that servers give out unless told otherwise."""


class Endpoint:
    """An OpenAI-compatible server. Thread-safe; a context manager that closes its connections.

    Args:
        base_url: with or without the final `/v1`.
        model: the served name; None takes the only one that is served.
        api_key: None reads QDEPLOY_API_KEY, then OPENAI_API_KEY. Never shown or stored.
        timeout: seconds that one request may take.
    """

    def __init__(
        self, base_url: str, model: str | None = None, api_key: str | None = None, timeout: float = 600.0
    ) -> None:
        self.base_url = _normalized(base_url)
        self._model = model
        self._key = api_key if api_key is not None else api_key_from_environment()
        self._client = httpx.Client(
            timeout=httpx.Timeout(timeout, connect=10.0),
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
            trust_env=not _is_loopback(self.base_url),
        )

    def __repr__(self) -> str:
        key = "set" if self._key else "none"
        return f"Endpoint({self.base_url!r}, model={self._model!r}, api_key=<{key}>)"

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    @property
    def root_url(self) -> str:
        """The server without `/v1`."""
        return self.base_url.removesuffix("/v1")

    @cached_property
    def model(self) -> str:
        """The served name that requests use.

        Raises:
            EndpointError: none was given and the server has none or several; the message lists them.
        """
        if self._model is not None:
            return self._model
        served = self.models()
        if len(served) != 1:
            names = ", ".join(served) or "none"
            raise EndpointError(f"{self.base_url} serves {len(served)} models ({names}). Name one: --model.")
        return served[0]

    def models(self) -> list[str]:
        """Names of the served models."""
        return [str(card["id"]) for card in self._cards]

    def require_model(self) -> None:
        """Refuse a name that is not served.

        Raises:
            EndpointError: the message lists what is served.
        """
        if self.model not in self.models():
            served = ", ".join(self.models()) or "no model"
            raise EndpointError(f"{self.base_url} does not serve {self.model!r}. It serves: {served}.")

    @property
    def max_model_len(self) -> int | None:
        """Longest prompt + output in tokens, where the server tells (vLLM does)."""
        cards = {card["id"]: card for card in self._cards}
        length = cards.get(self.model, {}).get("max_model_len")
        return int(length) if length is not None else None

    @property
    def root(self) -> str | None:
        """The folder or hub name that is served, where the server tells (vLLM does)."""
        return next(
            (card["root"] for card in self._cards if card["id"] == self.model and card.get("root")), None
        )

    @property
    def owner(self) -> str | None:
        """What the server calls itself in its list of models: "vllm", "sglang", "llamacpp" …"""
        return next((str(card["owned_by"]) for card in self._cards if card.get("owned_by")), None)

    @cached_property
    def _cards(self) -> list[dict[str, Any]]:
        return list(_object(self._request("GET", f"{self.base_url}/models")).get("data") or ())

    def complete(self, prompt: str | Sequence[int], **options: Any) -> dict[str, Any]:
        """POST /v1/completions, greedy unless `options` say otherwise; returns the parsed answer.

        Raises:
            EndpointError: unreachable, refused, or an error status after all attempts.
        """
        body = self._body(prompt, options)
        return _object(self._request("POST", f"{self.base_url}/completions", body))

    def stream(self, prompt: str | Sequence[int], **options: Any) -> list[dict[str, Any]]:
        """Like `complete` with `stream`: all chunks, once the last one is here."""
        answer = self._request(
            "POST", f"{self.base_url}/completions", self._body(prompt, options, stream=True)
        )
        data = [line[5:].strip() for line in answer.text.splitlines() if line.startswith("data:")]
        return [json.loads(chunk) for chunk in data if chunk != "[DONE]"]

    def score(self, token_ids: Sequence[int], top_k: int = 0, greedy: bool = False) -> Scores:
        """Log-probabilities of the sequence's own tokens and, for `top_k` > 0, of the likeliest ones.

        Args:
            greedy: without `top_k`, also tell which tokens are the likeliest ones; a longer answer.

        Raises:
            EndpointError: the sequence does not fit the model, or the server returns no such figures.
        """
        if len(token_ids) < 2:
            raise EndpointError(
                f"A sequence of {len(token_ids)} tokens has nothing to score: give at least 2."
            )
        self._check_length(len(token_ids))
        if top_k > 0:
            answer = self.complete(token_ids, max_tokens=1, prompt_logprobs=top_k)
            return from_prompt_logprobs(token_ids, _choice(answer), top_k)
        options = {"max_tokens": 1, "echo": True, "logprobs": int(greedy), "return_tokens_as_token_ids": True}
        return from_echo(token_ids, _choice(self.complete(token_ids, **options)), greedy)

    def next_token(self, token_ids: Sequence[int], candidates: Sequence[int], listed: bool) -> NextToken:
        """What follows the sequence: the likeliest token, and the log-probabilities of candidates.

        Args:
            listed: ask for these very candidates (vLLM's `logprob_token_ids`); else for the likeliest 20,
                among which they may be missing.

        Raises:
            EndpointError: the sequence does not fit the model, or the server returns no such figures.
        """
        self._check_length(len(token_ids))
        options: dict[str, Any] = {"max_tokens": 1, "return_tokens_as_token_ids": True}
        if listed:
            options |= {"logprobs": 1, "logprob_token_ids": sorted(set(candidates))}
        else:
            options |= {"logprobs": TOP_LOGPROBS}
        return from_completion(_choice(self.complete(token_ids, **options)))

    def generate(self, token_ids: Sequence[int], **options: Any) -> str:
        """The text that the model goes on with; greedy unless `options` say otherwise.

        Raises:
            EndpointError: the request is refused, or its answer holds no text.
        """
        if self.owner == "vllm":
            # A model folder's own generation defaults would hold for greedy decoding too.
            options = {"repetition_penalty": 1.0, **options}
        text = _choice(self.complete(token_ids, **options)).get("text")
        if text is None:
            raise EndpointError(f"{self.base_url}/completions answered without a text.")
        return str(text)

    def score_many(
        self,
        sequences: Sequence[Sequence[int]],
        top_k: int = 0,
        concurrency: int = 4,
        on_done: Callable[[int, Scores], None] | None = None,
    ) -> list[Scores]:
        """`score` of every sequence, in order, at most `concurrency` at a time.

        Args:
            on_done: called in this thread with (index, scores) as each one arrives.

        Raises:
            EndpointError: the first failure; requests not yet sent are dropped.
        """
        results: list[Scores | None] = [None] * len(sequences)
        with ThreadPoolExecutor(max_workers=min(concurrency, MAX_CONNECTIONS)) as pool:
            futures = {pool.submit(self.score, ids, top_k): index for index, ids in enumerate(sequences)}
            try:
                for future in as_completed(futures):
                    index = futures[future]
                    results[index] = scores = future.result()
                    if on_done is not None:
                        on_done(index, scores)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [scores for scores in results if scores is not None]

    def get_optional(self, path: str) -> dict[str, Any] | None:
        """The JSON at a path under the server's root; None where the server has no such path."""
        return self._optional("GET", path)

    def tokenize(self, text: str, add_special_tokens: bool = True) -> list[int] | None:
        """Token ids of `text` by the /tokenize path of vLLM and SGLang; None where the server has none."""
        body = {"model": self.model, "prompt": text, "add_special_tokens": add_special_tokens}
        return (self._optional("POST", "/tokenize", body) or {}).get("tokens")

    def _optional(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
        try:
            response = self._client.request(method, self.root_url + path, json=body)
            return dict(response.json()) if response.is_success else None
        except (httpx.HTTPError, ValueError):
            return None

    def _body(self, prompt: str | Sequence[int], options: dict[str, Any], **more: Any) -> dict[str, Any]:
        text_or_ids = prompt if isinstance(prompt, str) else list(prompt)
        return {"model": self.model, "prompt": text_or_ids, "temperature": 0, **options, **more}

    def _check_length(self, length: int) -> None:
        limit = self.max_model_len
        if limit is not None and length >= limit:
            raise EndpointError(
                f"A sequence of {length} tokens does not fit {self.model}: the server's limit is {limit} "
                f"with one generated token. Use at most {limit - 1} tokens or raise --max-model-len."
            )

    def _request(self, method: str, url: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """Send, with another attempt after a broken connection, a 429 or a 5xx answer, and after no other."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                response = self._client.request(method, url, json=body)
            except (
                httpx.ConnectError,
                httpx.RemoteProtocolError,
                httpx.ReadError,
                httpx.WriteError,
            ) as error:
                failure: httpx.HTTPError | None = error
            except httpx.HTTPError as error:
                raise EndpointError(f"{url} failed: {error or type(error).__name__}.") from error
            else:
                if response.status_code < 500 and response.status_code != BUSY:
                    self._check_status(response)
                    return response
                failure = None
            if attempt < ATTEMPTS:
                # Spread out, so that requests that failed together do not come back together.
                time.sleep(BACKOFF_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
        if failure is not None:
            raise EndpointError(
                f"Cannot reach {url}: {failure} ({ATTEMPTS} attempts). Is the server up, and is this its URL?"
            ) from failure
        raise EndpointError(f"{url} answered {response.status_code} {ATTEMPTS} times: {_detail(response)}")

    def _check_status(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        status, url = response.status_code, response.request.url
        if status in (401, 403):
            given = "the key given is not accepted" if self._key else "no key is set"
            raise EndpointError(
                f"{url} answered {status}, wrong API key: {given}. "
                f"Set {KEY_VARIABLES[0]} (or {KEY_VARIABLES[1]}) to the server's key."
            )
        if status == 404 and url.path.endswith("/completions"):
            self.require_model()
        raise EndpointError(f"{url} answered {status}: {_detail(response)}")


def api_key_from_environment() -> str | None:
    """QDEPLOY_API_KEY, else OPENAI_API_KEY, else None.

    Raises:
        EndpointError: the key cannot stand in an HTTP header; the message does not show it.
    """
    name = next((name for name in KEY_VARIABLES if os.environ.get(name)), None)
    key = os.environ[name] if name else None
    if key and not (key.isascii() and key.isprintable()):
        raise EndpointError(
            f"{name} holds a line break or a character that no HTTP header can carry. Set it again."
        )
    return key


def _normalized(url: str) -> str:
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise EndpointError(f"{url!r} is not an HTTP URL. Write it like http://127.0.0.1:8000/v1.")
    base = f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")
    return base if base.endswith("/v1") else f"{base}/v1"


def _is_loopback(url: str) -> bool:
    """A proxy from the environment must not stand between this process and a local server."""
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


def _object(response: httpx.Response) -> dict[str, Any]:
    """The JSON object in an answer; a web page or a proxy's notice is refused."""
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise EndpointError(
            f"{response.request.url} answered {response.text[:200]!r}, which is no JSON object. "
            "Is this the URL of an OpenAI-compatible server?"
        )
    return answer


def _choice(answer: dict[str, Any]) -> dict[str, Any]:
    choices = answer.get("choices")
    if not choices:
        raise EndpointError(f"The endpoint's answer has no choices: {str(answer)[:200]}")
    return dict(choices[0])


def _detail(response: httpx.Response) -> str:
    """The server's own message, from the OpenAI error shape where it is that."""
    try:
        error = response.json().get("error")
        return str(error["message"] if isinstance(error, dict) else error)[:500]
    except (ValueError, AttributeError, KeyError):
        return response.text[:500] or "no message"
