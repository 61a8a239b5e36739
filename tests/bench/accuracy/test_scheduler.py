from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qdeploy.bench.accuracy.asking import NO_SHORTCUTS, Shortcuts
from qdeploy.bench.accuracy.encoding import Generation, Request, encode_item, encode_request
from qdeploy.bench.accuracy.items import Generate, Item, Likelihood
from qdeploy.bench.accuracy.journal import Journal
from qdeploy.bench.accuracy.scheduler import answer_all, jobs
from qdeploy.bench.tokenizer import Encoder
from qdeploy.errors import EndpointError, Interrupted
from tests.bench.accuracy.conftest import Ask, client
from tests.bench.evaluation.conftest import BLOCK


@pytest.fixture
def requests(encoder: Encoder) -> list[Request]:
    return [encode_request(encoder, f"Question {i}:", f" word {j}") for i in range(6) for j in range(2)]


@pytest.fixture
def labels(encoder: Encoder) -> list[Request]:
    return [encode_request(encoder, f"Question {i}:", label) for i in range(3) for label in "ABCD"]


def _scores(
    ask: Ask, requests: list[Request], path: Path, shortcuts: Shortcuts = NO_SHORTCUTS, **behaviour: Any
) -> tuple[Any, Any]:
    server = ask()
    for name, value in behaviour.items():
        setattr(server, name, value)
    with client(server) as endpoint, Journal(path, {}) as journal:
        answer_all(endpoint, requests, journal, 3, shortcuts)
        return server, [journal.get(request) for request in requests]


def test_the_same_request_is_sent_once(ask: Ask, requests: list[Request], journal: Journal) -> None:
    server = ask()
    with client(server) as endpoint:
        answer_all(endpoint, requests * 3, journal, 4)
        answer_all(endpoint, requests, journal, 4)
    assert len(server.asked) == len(requests)


def test_requests_that_begin_alike_follow_each_other(requests: list[Request]) -> None:
    shuffled = requests[::2] + requests[1::2]
    contexts = [job.ids[:12] for job in jobs(shuffled)]
    assert len(list(itertools.groupby(contexts))) == len(set(contexts))


def test_a_second_measurement_asks_in_another_order(
    ask: Ask, requests: list[Request], tmp_path: Path
) -> None:
    """Else the same requests shared each batch again, and the noise floor saw nothing."""
    orders = []
    for shuffled in (False, False, True):
        server = ask()
        with client(server) as endpoint, Journal(tmp_path / f"{len(orders)}.jsonl", {}) as journal:
            answer_all(endpoint, requests, journal, 1, shuffled=shuffled)
        orders.append([tuple(body["prompt"]) for body in server.asked])
    assert orders[0] == orders[1] == sorted(orders[0])
    assert orders[2] != orders[0] and sorted(orders[2]) == orders[0]


def test_no_more_in_flight_than_asked_for(ask: Ask, requests: list[Request], journal: Journal) -> None:
    server = ask()
    server.delay_s = 0.01
    with client(server) as endpoint:
        answer_all(endpoint, requests, journal, 3)
    assert server.peak == 3


@pytest.mark.parametrize("behaviour", [{"lists": True}, {"lists": False, "top": 1024}])
def test_one_request_answers_all_labels(
    ask: Ask,
    labels: list[Request],
    tmp_path: Path,
    behaviour: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qdeploy.engines.endpoint.TOP_LOGPROBS", 1024)
    plain = [Request(r.ids, r.start, greedy=True) for r in labels]
    _, slow = _scores(ask, [r for r in plain if r.ids[-1] == plain[0].ids[-1]], tmp_path / "one")
    server, fast = _scores(ask, plain, tmp_path / "all", Shortcuts(behaviour["lists"]), **behaviour)
    assert len(server.asked) == 3
    assert [a.loglikelihood for a in fast[::4]] == pytest.approx([a.loglikelihood for a in slow], abs=1e-5)
    assert [a.greedy for a in fast[::4]] == [a.greedy for a in slow]


@pytest.mark.parametrize("drops_rows", [False, True])
@pytest.mark.parametrize("greedy", [False, True])
def test_a_beginning_that_is_known_is_not_computed_again(
    ask: Ask, encoder: Encoder, tmp_path: Path, greedy: bool, drops_rows: bool
) -> None:
    context = "A long story that all choices share, " * 3
    asked = [encode_request(encoder, f"{context}{i}:", f" end {j}") for i in range(3) for j in range(4)]
    asked = [replace(request, greedy=greedy) for request in asked]
    _, plain = _scores(ask, asked, tmp_path / "plain")
    server, quick = _scores(ask, asked, tmp_path / "quick", Shortcuts(block=BLOCK), drops_rows=drops_rows)
    assert [a.loglikelihood for a in quick] == pytest.approx([a.loglikelihood for a in plain], abs=1e-5)
    assert [a.greedy for a in quick] == [a.greedy for a in plain]
    assert len(server.asked) == len(asked), "and none was asked twice"
    # Three requests may be under way before the first has left anything.
    assert sum(cached >= len(context) // BLOCK * BLOCK for cached in server.cached) >= len(asked) - 3


@pytest.mark.parametrize("drops_rows", [False, True])
def test_choices_that_begin_alike_are_scored_from_their_beginning(
    ask: Ask, encoder: Encoder, tmp_path: Path, drops_rows: bool
) -> None:
    """What the cache holds of a choice has no score, so such choices are asked for as a whole at once."""
    asked = [encode_request(encoder, "Well, then:", f" {'the very same words ' * 2}{i}") for i in range(4)]
    _, plain = _scores(ask, asked, tmp_path / "plain")
    server, quick = _scores(ask, asked, tmp_path / "quick", Shortcuts(block=BLOCK), drops_rows=drops_rows)
    assert not server.cached and len(server.asked) == len(asked)
    assert [a.loglikelihood for a in quick] == pytest.approx([a.loglikelihood for a in plain], abs=1e-5)
    with client(server) as endpoint:
        first, second = (endpoint.score_end(each.ids, each.start, salt="of this test") for each in asked[:2])
    assert first is not None and second is None, "what is in the place of a score is not taken for one"


@pytest.mark.parametrize(("length", "known"), [(BLOCK, False), (BLOCK + 1, True)])
def test_only_beginnings_that_fill_a_block_and_are_shared_come_from_the_cache(
    ask: Ask, tmp_path: Path, length: int, known: bool
) -> None:
    """A request for the end alone takes the server longer, so it must have something to spare."""
    shared = [Request((*range(40, 40 + length), *choice), length) for choice in ((1, 2), (3, 4), (5, 6))]
    alone = Request((*range(60, 60 + length), 1, 2), length)
    assert [job.known for job in jobs([*shared, alone], BLOCK)] == [known, known, known, False]
    assert not any(job.known for job in jobs(shared))
    server, quick = _scores(ask, [*shared, alone], tmp_path / "quick", Shortcuts(block=BLOCK))
    assert len(server.cached) == (3 if known else 0)
    _, plain = _scores(ask, [*shared, alone], tmp_path / "plain")
    assert [a.loglikelihood for a in quick] == pytest.approx([a.loglikelihood for a in plain], abs=1e-5)


def test_a_second_run_does_not_find_the_choices_of_the_first(
    ask: Ask, requests: list[Request], tmp_path: Path
) -> None:
    server = ask()
    for name in ("first", "second"):
        with client(server) as endpoint, Journal(tmp_path / name, {}) as journal:
            answer_all(endpoint, requests, journal, 1, Shortcuts(block=BLOCK))
    half = len(server.cached) // 2
    assert server.cached[:half] == server.cached[half:]


def test_where_the_shortcut_fails_the_long_way_is_gone(
    ask: Ask, requests: list[Request], tmp_path: Path
) -> None:
    """vLLM's rows of cached positions may hold what JSON cannot, and the answer is a 500."""
    _, plain = _scores(ask, requests, tmp_path / "plain")
    server, quick = _scores(ask, requests, tmp_path / "quick", Shortcuts(block=BLOCK), statuses=[500, 500])
    assert not server.statuses
    assert quick == plain


def test_labels_that_are_not_among_the_top_are_scored(
    ask: Ask, labels: list[Request], tmp_path: Path
) -> None:
    server, answers = _scores(ask, labels, tmp_path / "top", lists=False, top=2)
    _, slow = _scores(ask, labels, tmp_path / "listed", Shortcuts(listed=True))
    assert len(server.asked) > len(labels)
    assert [a.loglikelihood for a in answers] == pytest.approx([a.loglikelihood for a in slow], abs=1e-5)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_trouble_is_tried_again(
    ask: Ask, requests: list[Request], tmp_path: Path, status: int
) -> None:
    _, answers = _scores(ask, requests, tmp_path / "j", statuses=[status, status])
    assert None not in answers


def test_a_refusal_is_not_tried_again(ask: Ask, requests: list[Request], journal: Journal) -> None:
    server = ask()
    server.statuses = [400] * 50
    with client(server) as endpoint, pytest.raises(EndpointError, match="400: as told"):
        answer_all(endpoint, requests[:1], journal, 1)
    assert len(server.statuses) == 49


def test_a_dying_engine_loses_no_finished_item(ask: Ask, requests: list[Request], tmp_path: Path) -> None:
    path, server = tmp_path / "answers.jsonl", ask()
    server.dies_after = 5
    with client(server) as endpoint, Journal(path, {}) as journal, pytest.raises(EndpointError):
        answer_all(endpoint, requests, journal, 2)
    assert len(server.asked) == 5
    kept = len(path.read_text().splitlines()) - 1
    assert kept == 5
    server, answers = _scores(ask, requests, path)
    assert len(server.asked) == len(requests) - 5
    assert None not in answers


def test_ctrl_c_keeps_what_is_under_way(ask: Ask, requests: list[Request], tmp_path: Path) -> None:
    path, server = tmp_path / "answers.jsonl", ask()
    server.delay_s, server.interrupts_after = 0.02, 3
    with (
        client(server) as endpoint,
        Journal(path, {}) as journal,
        pytest.raises(Interrupted, match="goes on"),
    ):
        answer_all(endpoint, requests, journal, 2)
    assert 0 < len(server.asked) < len(requests)
    assert len(set(path.read_text().splitlines())) - 1 == len(server.asked)


def test_a_torn_last_line_is_dropped(tmp_path: Path, requests: list[Request]) -> None:
    path = tmp_path / "answers.jsonl"
    with Journal(path, {"name": "m"}) as journal:
        for request in requests:
            journal.add(request, Likelihood(-1.5, False))
    whole = path.read_bytes()
    for cut in range(len(whole) - 60, len(whole)):
        path.write_bytes(whole[:cut])
        with Journal(path, {"name": "m"}) as journal:
            assert len(journal.answers) == len(requests) - 1
            journal.add(requests[-1], Likelihood(-2.0))
        with Journal(path, {"name": "m"}) as journal:
            assert len(journal.answers) == len(requests)
            assert journal.get(requests[-1]) == Likelihood(-2.0)


def test_answers_of_another_model_are_not_used(tmp_path: Path, requests: list[Request]) -> None:
    path = tmp_path / "answers.jsonl"
    with Journal(path, {"name": "m"}) as journal:
        journal.add(requests[0], Likelihood(-1.5))
    with Journal(path, {"name": "other"}) as journal:
        assert journal.get(requests[0]) is None
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"journal": 1, "model": {"name": "other"}}
    ]


def test_text_ends_before_the_first_stop_sequence(ask: Ask, encoder: Encoder, journal: Journal) -> None:
    """Also where the server leaves it in, or does not know it."""
    server = ask()
    free = Generate("Once", (), 12)
    with client(server) as endpoint:
        whole = _text(endpoint, encoder, journal, free)
        stop = whole[4:6]
        assert _text(endpoint, encoder, journal, Generate("Once", (stop,), 12)) == whole.split(stop)[0]
        server.stops = False
        assert _text(endpoint, encoder, journal, Generate("Once", (stop,), 13)) == whole.split(stop)[0]


def _text(endpoint: Any, encoder: Encoder, journal: Journal, call: Generate) -> str:
    [request] = encode_item(encoder, Item("0", "c", (call,), None, ()), None).requests
    assert isinstance(request, Generation)
    answer_all(endpoint, [request], journal, 1)
    return str(journal.get(request))
