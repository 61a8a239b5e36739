from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bench.load.server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    found.start()
    yield found
    found.stop()


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QDEPLOY_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
