"""Rules that exporters share: what an engine does not read or run."""

from __future__ import annotations

from qdeploy.exporters.lint.rule import rule

NOT_READ = rule(
    "QD612",
    "error",
    "The engine does not read this format, or not all of it",
    """vLLM reads GPTQ folders with symmetric grids of 4 or 8 bits in groups of 32, 64, 128 or whole rows,
    AWQ folders of 4 bits, and ModelOpt's minifloats; TensorRT-LLM's PyTorch backend reads ModelOpt's
    folders alone. The layers may be fine all the same: `qdeploy convert` stores them in another format,
    bit by bit what they were, and `qdeploy export` does so by itself.""",
)
NO_GPU = rule(
    "QD614", "error", "The engine does not run on CPUs", "TensorRT-LLM has kernels for NVIDIA GPUs alone."
)
NOT_RUN = rule(
    "QD616",
    "info",
    "Checked by source alone",
    "TensorRT-LLM's rules were read from its source. This project has not run it on such a folder.",
)
NOT_TAKEN = rule(
    "QD621",
    "error",
    "trtllm-build does not take the model",
    """TensorRT-LLM's engine builder (`--backend tensorrt`) knows few architectures, one scheme for all
    layers, and layers that are dealt evenly to stages. The PyTorch backend takes most of what it does
    not.""",
)
LOST_IN_CHECKPOINT = rule(
    "QD622",
    "info",
    "What the engine builder's checkpoints cannot say",
    "The export does what comes nearest, and says what that is.",
)
NOT_LISTED = rule(
    "QD623",
    "warning",
    "TensorRT-LLM lists no such precision for the model",
    """Its documentation has a matrix of models and precisions for the engine builder. What is not in it may
    work, and nobody says so.""",
)
