"""HTTP to a server: with its key, another attempt where one may help, and errors that say what to do."""

from __future__ import annotations

import os
import random
import time
from typing import Any
from urllib.parse import urlsplit

import httpx

from qdeploy.engines import ports
from qdeploy.errors import EndpointError

KEY_VARIABLES = ("QDEPLOY_API_KEY", "OPENAI_API_KEY")
ATTEMPTS = 4
BACKOFF_S = 0.5
"""Wait before the second attempt, give or take half of it; doubled before each further one."""

BUSY = 429

MAX_CONNECTIONS = 64


class NotFoundError(EndpointError):
    """The server has no such path, or no such model."""


class Transport:
    """Requests to one server. Thread-safe.

    Args:
        base_url: with or without the final `/v1`.
        api_key: None reads QDEPLOY_API_KEY, then OPENAI_API_KEY. Never shown or stored.
        timeout: seconds that one request may take.
    """

    def __init__(self, base_url: str, api_key: str | None, timeout: float) -> None:
        self.base_url = _normalized(base_url)
        self._key = api_key if api_key is not None else api_key_from_environment()
        self._client = httpx.Client(
            timeout=httpx.Timeout(timeout, connect=10.0),
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
            trust_env=not self.is_local,
        )

    @property
    def has_key(self) -> bool:
        """Whether requests carry a key."""
        return bool(self._key)

    @property
    def is_local(self) -> bool:
        """Whether the address is this machine's loopback; no proxy may stand before it."""
        return urlsplit(self.base_url).hostname in ports.LOOPBACK

    @property
    def root_url(self) -> str:
        """The server without `/v1`."""
        return self.base_url.removesuffix("/v1")

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def once(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response | None:
        """The answer to one attempt at a path under the server's root; None unless it is a success."""
        try:
            response = self._client.request(method, self.root_url + path, json=body)
        except httpx.HTTPError:
            return None
        return response if response.is_success else None

    def get_json(self, url: str) -> dict[str, Any]:
        """The JSON object at a URL. Raises as `request`."""
        return _object(self.request("GET", url))

    def post_json(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON object that answers `body`. Raises as `request`."""
        return _object(self.request("POST", url, body))

    def request(self, method: str, url: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """Send, with another attempt after a broken connection, a 429 or a 5xx answer, and after no other.

        Raises:
            EndpointError: unreachable, refused, or an error status after all attempts.
        """
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
        # vLLM also answers 403 where a path of this kind was not opened.
        if status in (401, 403) and not url.path.startswith("/inference/"):
            given = "the key given is not accepted" if self._key else "no key is set"
            raise EndpointError(
                f"{url} answered {status}, wrong API key: {given}. "
                f"Set {KEY_VARIABLES[0]} (or {KEY_VARIABLES[1]}) to the server's key."
            )
        failure = NotFoundError if status == 404 else EndpointError
        raise failure(f"{url} answered {status}: {_detail(response)}")


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


def _detail(response: httpx.Response) -> str:
    """The server's own message, from the OpenAI error shape where it is that."""
    try:
        error = response.json().get("error")
        return str(error["message"] if isinstance(error, dict) else error)[:500]
    except (ValueError, AttributeError, KeyError):
        return response.text[:500] or "no message"
