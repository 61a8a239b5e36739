"""Requests to answers: which are sent, in what order, how many at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice

from qdeploy.bench import noise
from qdeploy.bench.accuracy.encoding import Generation, Request
from qdeploy.bench.accuracy.items import Answer, Likelihood
from qdeploy.bench.accuracy.journal import Journal
from qdeploy.engines.endpoint import Endpoint
from qdeploy.engines.scores import NextToken
from qdeploy.engines.transport import MAX_CONNECTIONS
from qdeploy.errors import Interrupted
from qdeploy.progress import Task, progress

AHEAD = 2
"""Jobs handed to the senders for each request in flight; the others wait as plain tuples."""

SEED = 1234
"""Of sampled answers, to which their number is added; lm-eval's seed."""

Answered = list[tuple[Request | Generation, Answer]]


@dataclass(frozen=True, slots=True)
class Job:
    """Requests that are answered together: one, or several one-token continuations of the same context."""

    requests: tuple[Request | Generation, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """What the server reads. Jobs go in their order, so that shared beginnings follow each other."""
        return self.requests[0].ids


def jobs(requests: Iterable[Request | Generation]) -> list[Job]:
    """Each different request once, choices of one token after the same context together, in prefix order."""
    alone: list[Job] = []
    labels: dict[tuple[int, ...], list[Request]] = defaultdict(list)
    for request in dict.fromkeys(requests):
        if isinstance(request, Request) and len(request.ids) == request.start + 1:
            labels[request.ids[: request.start]].append(request)
        else:
            alone.append(Job((request,)))
    return sorted([*alone, *(Job(tuple(group)) for group in labels.values())], key=lambda job: job.ids)


def answer_all(
    endpoint: Endpoint,
    requests: Iterable[Request | Generation],
    journal: Journal,
    concurrency: int,
    listed: bool = False,
    shuffled: bool = False,
) -> None:
    """Put the answer of every request into the journal, asking for those that it lacks.

    Args:
        concurrency: most requests in flight.
        listed: the endpoint gives log-probabilities of any candidates for the next token.
        shuffled: not in prefix order, so that other requests share a batch.

    Raises:
        EndpointError: the endpoint fails for good. All answers that have arrived are in the journal.
        Interrupted: Ctrl-C; likewise.
    """
    pending = jobs(request for request in requests if journal.get(request) is None)
    if shuffled:
        pending = noise.shuffled(pending)
    done = len(journal.answers)
    with progress("Asking the model", sum(len(job.requests) for job in pending)) as bar:
        if done:
            bar.note(f"({done} answered before)")
        try:
            _send(endpoint, pending, journal, min(concurrency, MAX_CONNECTIONS), listed, bar)
        except KeyboardInterrupt:
            raise Interrupted(
                f"Stopped with {len(journal.answers)} answers kept. The same command goes on from there."
            ) from None


def _send(
    endpoint: Endpoint, pending: Sequence[Job], journal: Journal, concurrency: int, listed: bool, bar: Task
) -> None:
    waiting = iter(pending)
    with ThreadPoolExecutor(max_workers=concurrency) as pool:

        def submit(count: int) -> set[Future[Answered]]:
            return {pool.submit(_answer, endpoint, job, listed) for job in islice(waiting, count)}

        running = submit(concurrency * AHEAD)
        try:
            while running:
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    _keep(future, journal, bar)
                    running.remove(future)
                running |= submit(len(finished))
        finally:
            # After an error or Ctrl-C, what is under way still counts.
            pool.shutdown(cancel_futures=True)
            for future in running:
                if not future.cancelled() and future.exception() is None:
                    _keep(future, journal, bar)


def _keep(future: Future[Answered], journal: Journal, bar: Task) -> None:
    """Into the journal, once: Ctrl-C may come between that and striking the future off."""
    answered = future.result()
    for request, answer in answered:
        if journal.get(request) is None:
            journal.add(request, answer)
    bar.advance(len(answered))


def _answer(endpoint: Endpoint, job: Job, listed: bool) -> Answered:
    first = job.requests[0]
    if isinstance(first, Generation):
        return [(first, _generate(endpoint, first))]
    requests = [request for request in job.requests if isinstance(request, Request)]
    if len(requests) > 1:
        next_token = endpoint.next_token(first.ids[:-1], [r.ids[-1] for r in requests], listed)
        if all(r.ids[-1] in next_token.logprobs for r in requests):
            return list(_labels(requests, next_token))
    return [(request, _score(endpoint, request)) for request in requests]


def _labels(requests: Iterable[Request], found: NextToken) -> Iterator[tuple[Request, Answer]]:
    for request in requests:
        label = request.ids[-1]
        yield request, Likelihood(found.logprobs[label], found.likeliest == label if request.greedy else None)


def _score(endpoint: Endpoint, request: Request) -> Likelihood:
    scores = endpoint.score(request.ids, greedy=request.greedy)
    return Likelihood(scores.total(request.start), scores.is_greedy(request.start))


def _generate(endpoint: Endpoint, generation: Generation) -> str:
    """The answer up to the first stop sequence, cut here too: servers differ in whether they leave it in."""
    call = generation.call
    sampling = {**dict(call.sampling), "seed": SEED + call.repeat} if call.sampling else {}
    text = endpoint.generate(generation.ids, max_tokens=call.max_tokens, stop=list(call.until), **sampling)
    for end in filter(None, call.until):
        text = text.split(end)[0]
    return text
