"""Requests to answers: which are sent, in what order, how many at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
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
    pending = jobs(request for request in requests if journal.get(request) is None)
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
