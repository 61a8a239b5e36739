"""Checkpoints for TensorRT-LLM's engine builder, up to 1.2.x: `config.json` and `rankN.safetensors`."""
