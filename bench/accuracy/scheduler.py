"""Requests to answers: which are sent, in what order, how many at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from itertools import islice

from qdeploy.bench import noise
from qdeploy.bench.accuracy.asking import NO_SHORTCUTS, Answered, Asker, Job, Shortcuts
from qdeploy.bench.accuracy.encoding import Generation, Request
from qdeploy.bench.accuracy.journal import Journal
from qdeploy.engines.endpoint import Endpoint
from qdeploy.engines.transport import MAX_CONNECTIONS
from qdeploy.errors import Interrupted
from qdeploy.progress import Task, progress

AHEAD = 2
"""Jobs handed to the senders for each request in flight; the others wait as plain tuples."""


def jobs(requests: Iterable[Request | Generation], block: int = 0) -> list[Job]:
    """Each different request once, choices of one token after the same context together, in prefix order.

    Args:
        block: tokens to a block of the server's cache, 0 for none.
    """
    alone: list[Job] = []
    labels: dict[tuple[int, ...], list[Request]] = defaultdict(list)
    for request in dict.fromkeys(requests):
        if isinstance(request, Request) and len(request.ids) == request.start + 1:
            labels[request.ids[: request.start]].append(request)
        else:
            alone.append(Job((request,)))
    ordered = sorted([*alone, *(Job(tuple(group)) for group in labels.values())], key=lambda job: job.ids)
    return list(_marked(ordered, block)) if block else ordered


def _marked(ordered: Sequence[Job], block: int) -> Iterator[Job]:
    for index, job in enumerate(ordered):
        first, neighbours = job.requests[0], [*ordered[max(0, index - 1) : index], *ordered[index + 1 :][:1]]
        known = isinstance(first, Request) and _comes_cached(first, [n.ids for n in neighbours], block)
        yield replace(job, known=known)


def _comes_cached(request: Request, others: Sequence[tuple[int, ...]], block: int) -> bool:
    """Whether the cache will hold something of its beginning, and nothing that its first score needs.

    A request for the end alone costs the server more where it has nothing to spare, and is lost where the
    cache reaches the token that the first to be scored follows.
    """
    ids, reach = request.ids, -(-request.start // block) * block
    spared = request.start > block and any(other[:block] == ids[:block] for other in others)
    return spared and not any(len(ids) > reach and other[:reach] == ids[:reach] for other in others)


def answer_all(
    endpoint: Endpoint,
    requests: Iterable[Request | Generation],
    journal: Journal,
    concurrency: int,
    shortcuts: Shortcuts = NO_SHORTCUTS,
    shuffled: bool = False,
) -> None:
    """Put the answer of every request into the journal, asking for those that it lacks.

    Args:
        concurrency: most requests in flight.
        shortcuts: what the endpoint can do.
        shuffled: not in prefix order, so that other requests share a batch.

    Raises:
        EndpointError: the endpoint fails for good. All answers that have arrived are in the journal.
        Interrupted: Ctrl-C; likewise.
    """
    pending = jobs((request for request in requests if journal.get(request) is None), shortcuts.block)
    if shuffled:
        pending = noise.shuffled(pending)
    done = len(journal.answers)
    with progress("Asking the model", sum(len(job.requests) for job in pending)) as bar:
        if done:
            bar.note(f"({done} answered before)")
        try:
            _send(Asker(endpoint, shortcuts), pending, journal, min(concurrency, MAX_CONNECTIONS), bar)
        except KeyboardInterrupt:
            raise Interrupted(
                f"Stopped with {len(journal.answers)} answers kept. The same command goes on from there."
            ) from None


def _send(asker: Asker, pending: Sequence[Job], journal: Journal, concurrency: int, bar: Task) -> None:
    waiting = iter(pending)
    with ThreadPoolExecutor(max_workers=concurrency) as pool:

        def submit(count: int) -> set[Future[Answered]]:
            return {pool.submit(asker.answer, job) for job in islice(waiting, count)}

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
