"""Load by guidellm's HTTP backend on uvloop, as in its worker processes."""

from __future__ import annotations

from typing import Any

import uvloop
from guidellm.backends.openai.http import OpenAIHTTPBackend
from guidellm.schemas import GenerationRequest, RequestInfo, UsageMetrics
from guidellm.schemas.backends import OpenAIHTTPBackendArgs
from load_job import LoadJob, jobs, report


async def main(job: LoadJob) -> dict[str, Any]:
    backend = OpenAIHTTPBackend(
        OpenAIHTTPBackendArgs(
            target=job.url.removesuffix("/v1"), model="mock", request_format="/v1/completions", stream=True
        )
    )
    await backend.process_startup()

    async def send(index: int) -> float:
        request = GenerationRequest(
            columns={"text_column": [job.prompt(index)]}, output_metrics=UsageMetrics(text_tokens=job.tokens)
        )
        info = RequestInfo()
        async for answer, _ in backend.resolve(request, info):
            last = answer
        if last is None or last.output_metrics.text_tokens != job.tokens:
            raise RuntimeError(f"not {job.tokens} tokens: {last}")
        return float(info.timings.first_token_iteration - info.timings.request_start)

    found: dict[str, Any] = await job.load(send)
    await backend.process_shutdown()
    return found


if __name__ == "__main__":
    for job in jobs():
        report(uvloop.run(main(job)))
