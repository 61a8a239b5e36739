"""One job: what is asked of the server, and the answers that its figures make."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from qdeploy.bench.accuracy.encoding import Generation, Request
from qdeploy.bench.accuracy.items import Answer, Likelihood
from qdeploy.engines.endpoint import Endpoint
from qdeploy.engines.probe import Capabilities
from qdeploy.engines.scores import NextToken

SEED = 1234
"""Of sampled answers, to which their number is added; lm-eval's seed."""

Answered = list[tuple[Request | Generation, Answer]]


@dataclass(frozen=True, slots=True)
class Job:
    """Requests that are answered together: one, or several one-token continuations of the same context.

    Attributes:
        known: the server's cache will hold a part of what is not scored, and nothing else.
    """

    requests: tuple[Request | Generation, ...]
    known: bool = False

    @property
    def ids(self) -> tuple[int, ...]:
        """What the server reads. Jobs go in their order, so that shared beginnings follow each other."""
        return self.requests[0].ids


@dataclass(frozen=True, slots=True)
class Shortcuts:
    """What the endpoint can do that spares it work; the scores are the same.

    Attributes:
        listed: gives log-probabilities of any candidates for the next token.
        block: scores the end of a sequence without computing again what is in blocks of so many tokens of its
            cache; 0: does not.
    """

    listed: bool = False
    block: int = 0

    @classmethod
    def of(cls, found: Capabilities) -> Shortcuts:
        """Those that the probe saw work."""
        return cls(found.listed_logprobs, found.cache_block)


NO_SHORTCUTS = Shortcuts()


@dataclass(frozen=True)
class Asker:
    """Asks one endpoint, by what it can do.

    Attributes:
        salt: keeps apart what this run and others leave in the server's cache. A second run would find its
            choices there too, and nothing is told of what is not computed.
    """

    endpoint: Endpoint
    shortcuts: Shortcuts
    salt: str = field(default_factory=lambda: secrets.token_hex(16))

    def answer(self, job: Job) -> Answered:
        """The answer to each request.

        Raises:
            EndpointError: the endpoint fails for good.
        """
        first = job.requests[0]
        if isinstance(first, Generation):
            return [(first, self._generate(first))]
        requests = [request for request in job.requests if isinstance(request, Request)]
        if len(requests) > 1:
            candidates = [request.ids[-1] for request in requests]
            next_token = self.endpoint.next_token(first.ids[:-1], candidates, self.shortcuts.listed)
            if next_token.logprobs.keys() >= set(candidates):
                return list(_labels(requests, next_token))
        return [(request, self._score(request, job.known)) for request in requests]

    def _score(self, request: Request, known: bool) -> Likelihood:
        ids, start, greedy = request.ids, request.start, request.greedy
        scores = None
        if known:
            scores = self.endpoint.score_end(ids, start, greedy=greedy, salt=self.salt)
        if scores is None:
            scores = self.endpoint.score(ids, greedy=greedy)
        return Likelihood(scores.total(start), scores.is_greedy(start))

    def _generate(self, generation: Generation) -> str:
        """The answer up to the first stop sequence, cut here too, since some servers leave it in."""
        call = generation.call
        sampling = {**dict(call.sampling), "seed": SEED + call.repeat} if call.sampling else {}
        text = self.endpoint.generate(
            generation.ids, max_tokens=call.max_tokens, stop=list(call.until), **sampling
        )
        for end in filter(None, call.until):
            text = text.split(end)[0]
        return text


def _labels(requests: Iterable[Request], found: NextToken) -> Iterator[tuple[Request, Answer]]:
    for request in requests:
        label = request.ids[-1]
        yield request, Likelihood(found.logprobs[label], found.likeliest == label if request.greedy else None)
