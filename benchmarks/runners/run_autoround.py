"""AutoRound at its defaults but for group size, tokens and the job's settings (`sym`); saved as GPTQ does."""

from __future__ import annotations

from pathlib import Path

import torch
from auto_round import AutoRound
from job import Job
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    job = Job()
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype="auto")
    tokens = torch.tensor(job.tokens)
    rounding = AutoRound(
        model,
        AutoTokenizer.from_pretrained(job.model),
        scheme="W4A16",
        group_size=job.group_size,
        dataset=[sample[None] for sample in tokens],
        nsamples=tokens.shape[0],
        seqlen=tokens.shape[1],
        **job.settings,
    )
    folder = Path(f"{job.output}-saved")
    with job.timed():
        rounding.quantize_and_save(str(folder), format="auto_gptq")
    (saved,) = folder.iterdir()  # it adds a folder of its own choosing
    saved.rename(job.output)


if __name__ == "__main__":
    main()
