"""GPTQ by llm-compressor, at its defaults but for the group size and the job's settings (`observer`)."""

from __future__ import annotations

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from job import Job
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from transformers import AutoModelForCausalLM


def main() -> None:
    job = Job()
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype="auto")
    weights = QuantizationArgs(num_bits=4, strategy="group", group_size=job.group_size, **job.settings)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    samples = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in job.tokens]
    with job.timed():
        oneshot(
            model=model,
            dataset=Dataset.from_list(samples),
            recipe=[GPTQModifier(config_groups={"group_0": scheme}, ignore=["lm_head"])],
            num_calibration_samples=len(samples),
            max_seq_length=len(job.tokens[0]),
        )
    with torch.no_grad():
        model.save_pretrained(job.output, save_compressed=True)


if __name__ == "__main__":
    main()
