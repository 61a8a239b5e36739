"""How far a quantized model's predictions are from those of the 16-bit one, exactly and in float32.

KL(p‖q) = Σ p·(log p − log q) over the whole vocabulary, averaged over every token of every window.
Perplexity is that of every token of a window but its first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from qdeploy.formats.dequantize import dequantized_state, input_scales
from qdeploy.formats.packed import Packed
from qdeploy.kv_cache import round_cache, stored_scales
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.rounded_inputs import round_inputs
from qdeploy.schemes import Activations

BATCH = 4
"""Windows that run together."""


@dataclass(frozen=True, slots=True)
class Score:
    """Mean KL divergence from the 16-bit model in nats per token, and the quantized model's perplexity."""

    divergence: float
    perplexity: float


class Scorer:
    """The 16-bit model's predictions for some windows of text, kept as final hidden states.

    Args:
        model: folder of the 16-bit model.
        windows: name of a text → tokens int64 [W, T].
    """

    def __init__(self, model: Path, windows: Mapping[str, Tensor]) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self._linears = {name for name in CheckpointReader(model).names if name.endswith("proj.weight")}
        # Other tools, and rotations, put another head in its place.
        self._tied = self._untied_head()
        self._head = self._model.get_output_embeddings().weight.detach().clone()
        self._windows = windows
        self._reference = {name: self._states(tokens) for name, tokens in windows.items()}

    def score(self, folder: Path, activations: Activations | None = None) -> dict[str, Score]:
        """Name of a text → how the model in `folder` does on it.

        Args:
            folder: of the model.
            activations: round the inputs of quantized layers so, whatever their scheme says.

        Raises:
            ValueError: the folder lacks some weight of the blocks, or holds one that the model has not.
        """
        self._load(dict(dequantized_state(folder)))
        with self._rounded_inputs(folder, activations):
            return {name: self._scored(name) for name in self._windows}

    @contextmanager
    def _rounded_inputs(self, folder: Path, activations: Activations | None) -> Iterator[None]:
        """Round the inputs of layers whose scheme says so, and keys and values, as engines do."""
        reader = CheckpointReader(folder)
        packed = Packed(reader)
        schemes = packed.schemes
        if activations is not None:
            schemes = {name: replace(scheme, activations=activations) for name, scheme in schemes.items()}
        handles = round_inputs(self._model, schemes, input_scales(packed))
        end = round_cache(self._model, stored_scales(reader))
        try:
            yield
        finally:
            end()
            for handle in handles:
                handle.remove()

    def _untied_head(self) -> dict[str, str]:
        """Let the head have weights of its own; returns its name → where they were, if it had none."""
        head, embeddings = self._model.get_output_embeddings(), self._model.get_input_embeddings()
        if head.weight is not embeddings.weight:
            return {}
        head.weight = nn.Parameter(head.weight.detach().clone())
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        return {names[id(head.weight)]: names[id(embeddings.weight)]}

    def _load(self, state: dict[str, Tensor]) -> None:
        state = {head: state[shared] for head, shared in self._tied.items()} | state
        unknown = self._model.load_state_dict(state, strict=False).unexpected_keys
        missing = self._linears - state.keys()
        if missing or unknown:
            raise ValueError(f"not the same model: lacks {sorted(missing)}, has beside it {unknown}")

    @torch.no_grad()
    def _states(self, tokens: Tensor) -> Tensor:
        batches = [
            self._model.base_model(input_ids=batch, use_cache=False).last_hidden_state
            for batch in torch.split(tokens, BATCH)
        ]
        return torch.cat(batches)

    @torch.no_grad()
    def _scored(self, name: str) -> Score:
        kl, nll, head = 0.0, 0.0, self._model.get_output_embeddings().weight
        windows = self._windows[name]
        for p_states, q_states, tokens in zip(
            self._reference[name], self._states(windows), windows, strict=True
        ):
            p = torch.log_softmax(p_states @ self._head.T, -1)
            q = torch.log_softmax(q_states @ head.T, -1)
            kl += float((p.exp() * (p - q)).sum(-1).double().sum())
            nll -= float(q[:-1].gather(1, tokens[1:, None]).double().sum())
        return Score(kl / windows.numel(), math.exp(nll / windows[:, 1:].numel()))
