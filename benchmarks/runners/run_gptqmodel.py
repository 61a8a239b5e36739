"""GPTQ by GPTQModel, at its defaults but for the group size and the job's settings (`mse`)."""

from __future__ import annotations

from gptqmodel import GPTQModel, QuantizeConfig
from job import Job


def main() -> None:
    job = Job()
    model = GPTQModel.load(job.model, QuantizeConfig(bits=4, group_size=job.group_size, **job.settings))
    samples = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in job.tokens]
    with job.timed():
        model.quantize(samples)
    model.save(job.output)


if __name__ == "__main__":
    main()
