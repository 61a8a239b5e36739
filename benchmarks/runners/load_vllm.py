"""Load by the client of `vllm bench serve`, with the session that it makes, on the loop that it uses."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from load_job import LoadJob, jobs, report
from vllm.benchmarks.lib.endpoint_request_func import RequestFuncInput, async_request_openai_completions


async def main(job: LoadJob) -> dict[str, Any]:
    connector = aiohttp.TCPConnector(
        limit=0, ttl_dns_cache=300, keepalive_timeout=60, enable_cleanup_closed=True
    )
    timeout = aiohttp.ClientTimeout(total=6 * 60 * 60)
    async with aiohttp.ClientSession(connector=connector, trust_env=True, timeout=timeout) as session:

        async def send(index: int) -> float:
            asked = RequestFuncInput(
                prompt=job.prompt(index),
                api_url=f"{job.url}/completions",
                prompt_len=2,
                output_len=job.tokens,
                model="mock",
            )
            output = await async_request_openai_completions(asked, session)
            if not output.success or output.output_tokens != job.tokens:
                raise RuntimeError(output.error or f"{output.output_tokens} tokens of {job.tokens}")
            return float(output.ttft)

        found: dict[str, Any] = await job.load(send)
    return found


if __name__ == "__main__":
    for job in jobs():
        report(asyncio.run(main(job)))
