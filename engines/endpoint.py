"""A client for one served model behind an OpenAI-compatible URL.

Prompts go as token ids, so that no second tokenizer and no BOS come in between. Log-probabilities of the
prompt come from `/v1/completions` (vLLM's `prompt_logprobs`, or `echo` where only the chosen tokens are
wanted). Those of chosen token ids at every position come from vLLM's `/inference/v1/generate`
(`prompt_logprob_token_ids`), where it is started with `--enable-scale-out` and has its V2 model runner. That
needs Triton, which the CPU build of 0.32 lacks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray

from qdeploy.engines.scores import (
    NextToken,
    Scores,
    from_completion,
    from_echo,
    from_end,
    from_generate,
    from_prompt_logprobs,
)
from qdeploy.engines.transport import MAX_CONNECTIONS, NotFoundError, Transport
from qdeploy.errors import EndpointError

TOP_LOGPROBS = 20
"""Most log-probabilities of a generated token that servers give out unless told otherwise."""

GENERATE = "/inference/v1/generate"
"""vLLM's path for token ids in and out; the only one that scores chosen ids."""

UNCHANGED = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""Sampling from the model's own distribution, whatever the checkpoint's generation config says."""

Chosen = NDArray[np.int32]
R = TypeVar("R")


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
        self._http = Transport(base_url, api_key, timeout)
        self._model = model

    def __repr__(self) -> str:
        key = "set" if self._http.has_key else "none"
        return f"Endpoint({self.base_url!r}, model={self._model!r}, api_key=<{key}>)"

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    @property
    def base_url(self) -> str:
        """The address of the API, with `/v1`."""
        return self._http.base_url

    @property
    def root_url(self) -> str:
        """The server without `/v1`."""
        return self._http.root_url

    @property
    def is_local(self) -> bool:
        """Whether the server's address is this machine's loopback."""
        return self._http.is_local

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
        return list(self._http.get_json(f"{self.base_url}/models").get("data") or ())

    def complete(self, prompt: str | Sequence[int], **options: Any) -> dict[str, Any]:
        """POST /v1/completions, greedy unless `options` say otherwise; returns the parsed answer.

        Raises:
            EndpointError: unreachable, refused, or an error status after all attempts.
        """
        with self._unknown_model_named():
            return self._http.post_json(f"{self.base_url}/completions", self._body(prompt, options))

    def stream(self, prompt: str | Sequence[int], **options: Any) -> list[dict[str, Any]]:
        """Like `complete` with `stream`: all chunks, once the last one is here."""
        body = self._body(prompt, options, stream=True)
        with self._unknown_model_named():
            answer = self._http.request("POST", f"{self.base_url}/completions", body)
        data = [line[5:].strip() for line in answer.text.split("\n") if line.startswith("data:")]
        return [json.loads(chunk) for chunk in data if chunk != "[DONE]"]

    @contextmanager
    def _unknown_model_named(self) -> Iterator[None]:
        """Of a path that is not found, say first whether it is the model that the server does not have."""
        try:
            yield
        except NotFoundError:
            self.require_model()
            raise

    def score(
        self,
        token_ids: Sequence[int],
        top_k: int = 0,
        chosen: Chosen | None = None,
        *,
        greedy: bool = False,
    ) -> Scores:
        """Log-probabilities of the sequence's own tokens and, for `top_k` > 0, of the likeliest ones.

        Args:
            chosen: int [R, K], ids to score as well at each of the last R positions.
            greedy: without `top_k`, also tell which tokens are the likeliest ones; a longer answer.

        Raises:
            EndpointError: the sequence does not fit the model, or the server returns no such figures.
        """
        if len(token_ids) < 2:
            raise EndpointError(
                f"A sequence of {len(token_ids)} tokens has nothing to score: give at least 2."
            )
        self._check_length(len(token_ids))
        if chosen is not None:
            return self._score_chosen(token_ids, max(top_k, 1), chosen)
        if top_k > 0:
            answer = self.complete(token_ids, max_tokens=1, prompt_logprobs=top_k)
            return from_prompt_logprobs(token_ids, _choice(answer), top_k)
        options = {"max_tokens": 1, "echo": True, "logprobs": int(greedy), "return_tokens_as_token_ids": True}
        return from_echo(token_ids, _choice(self.complete(token_ids, **options)), greedy)

    def score_end(
        self, token_ids: Sequence[int], start: int, *, greedy: bool = False, salt: str = ""
    ) -> Scores | None:
        """`score` from position `start` on, with what comes before out of the server's prefix cache.

        vLLM leaves its cache alone where log-probabilities of the prompt are asked for, since it has none of
        what it does not compute. The end's need no others, and a request to `/inference/v1/generate` may say
        so (`skip_reading_prefix_cache`).

        Args:
            salt: what is in the cache is shared by requests of the same salt alone.

        Returns:
            None where it could not be had so: the cache also held tokens to be scored, or the server failed.

        Raises:
            EndpointError: the sequence does not fit the model, or the answer is about another one.
        """
        self._check_length(len(token_ids))
        parameters = {
            "max_tokens": 1,
            "temperature": 0,
            "detokenize": False,
            "prompt_logprobs": int(greedy),
            "skip_reading_prefix_cache": False,
        }
        body = {"model": self.model, "token_ids": list(token_ids), "sampling_params": parameters}
        answer = _json(self._http.once("POST", GENERATE, body | ({"cache_salt": salt} if salt else {})))
        return from_end(token_ids, answer, start, greedy) if answer else None

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

    def _score_chosen(self, token_ids: Sequence[int], top_k: int, chosen: Chosen) -> Scores:
        rows, k = chosen.shape
        parameters = {
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": top_k,
            "prompt_logprob_token_ids": chosen.tolist(),
            "prompt_logprob_start": len(token_ids) - 1 - rows,
        }
        body = {"model": self.model, "token_ids": list(token_ids), "sampling_params": parameters}
        answer = self._http.post_json(self.root_url + GENERATE, body)
        return from_generate(token_ids, answer, top_k, (rows, k))

    def score_many(
        self,
        sequences: Sequence[Sequence[int]],
        top_k: int = 0,
        concurrency: int = 4,
        on_done: Callable[[int, Scores], None] | None = None,
        chosen: Sequence[Chosen] | None = None,
    ) -> list[Scores]:
        """`score` of every sequence, in order, at most `concurrency` at a time.

        Args:
            on_done: called in this thread with (index, scores) as each one arrives.
            chosen: ids to score, for each sequence.

        Raises:
            EndpointError: the first failure; requests not yet sent are dropped.
        """
        ids: Sequence[Chosen | None] = chosen or [None] * len(sequences)
        calls = [partial(self.score, s, top_k, c) for s, c in zip(sequences, ids, strict=True)]
        return _in_parallel(calls, concurrency, on_done)

    def sample_many(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        concurrency: int = 4,
        on_done: Callable[[int, list[int]], None] | None = None,
    ) -> list[list[int]]:
        """Up to `tokens` tokens after each prompt, drawn from the model's distribution as it is.

        The end-of-text token, where it is drawn, ends a continuation and is part of it. The seed of a request
        is its index.

        Raises:
            EndpointError: as `score_many`, or the server does not tell the ids of its tokens.
        """
        calls = [partial(self._sample, ids, tokens, seed) for seed, ids in enumerate(prompts)]
        return _in_parallel(calls, concurrency, on_done)

    def _sample(self, prompt: Sequence[int], tokens: int, seed: int) -> list[int]:
        self._check_length(len(prompt) + tokens)
        options = {"max_tokens": tokens, "seed": seed, "return_token_ids": True}
        choice = _choice(self.complete(prompt, **UNCHANGED, **options))
        if not choice.get("token_ids"):
            raise EndpointError(
                f"{self.model} does not return the ids of the tokens it generates (return_token_ids), so its "
                "samples cannot be scored. Serve it with vLLM."
            )
        return [int(token) for token in choice["token_ids"]]

    def get_optional(self, path: str) -> dict[str, Any] | None:
        """The JSON at a path under the server's root; None where the server has no such path."""
        return _json(self._http.once("GET", path))

    def answers(self) -> bool:
        """Whether the server is there now."""
        return self._http.once("GET", "/v1/models") is not None

    def metrics_page(self) -> str | None:
        """The Prometheus text at /metrics; None where the server has none."""
        response = self._http.once("GET", "/metrics")
        return response.text if response else None

    def reset_prefix_cache(self) -> bool:
        """Have the server forget all prompts; False where it does not (vLLM: VLLM_SERVER_DEV_MODE)."""
        return any(self._http.once("POST", path) for path in ("/reset_prefix_cache", "/flush_cache"))

    def tokenize(self, text: str, add_special_tokens: bool = True) -> list[int] | None:
        """Token ids of `text` by the /tokenize path of vLLM and SGLang; None where the server has none."""
        body = {"model": self.model, "prompt": text, "add_special_tokens": add_special_tokens}
        return (_json(self._http.once("POST", "/tokenize", body)) or {}).get("tokens")

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


def _in_parallel(
    calls: Sequence[Callable[[], R]], concurrency: int, on_done: Callable[[int, R], None] | None
) -> list[R]:
    """The results in order; after the first failure the calls not yet begun are dropped."""
    results: dict[int, R] = {}
    with ThreadPoolExecutor(max_workers=min(concurrency, MAX_CONNECTIONS)) as pool:
        futures = {pool.submit(call): index for index, call in enumerate(calls)}
        try:
            for future in as_completed(futures):
                index = futures[future]
                results[index] = result = future.result()
                if on_done is not None:
                    on_done(index, result)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [results[index] for index in range(len(calls))]


def _json(response: httpx.Response | None) -> dict[str, Any] | None:
    """The object in an answer; None where there is none."""
    try:
        return dict(response.json()) if response else None
    except ValueError:
        return None


def _choice(answer: dict[str, Any]) -> dict[str, Any]:
    choices = answer.get("choices")
    if not choices:
        raise EndpointError(f"The endpoint's answer has no choices: {str(answer)[:200]}")
    return dict(choices[0])
