"""Looking at queries, keys and values as attention gets them: after rotary embeddings, before scores.

transformers' models call attention by the name that their config gives it. Here that is another name, behind
which whatever was named before still does the work.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

PREFIX = "qdeploy-seen-"
"""Followed by the name of the implementation that does the work."""

_SEEN_BY = "qdeploy_seen_by"
"""Attribute of a module whose attention is looked at."""

See = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Gets query [B, H, T, D], key and value [B, H or fewer, T, D], and returns what is to take their places."""


def look_at_attention(model: nn.Module, attentions: Mapping[nn.Module, See]) -> Callable[[], None]:
    """Let a function see, and change, what each of these modules hands to attention.

    Args:
        model: holds them all; a model or a block.
        attentions: modules that call attention in their forward; others do no harm.

    Returns:
        A function that ends it.
    """
    configs: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, "_attn_implementation", None) is not None:
            configs[id(config)] = config
    before = [(config, config._attn_implementation) for config in configs.values()]
    for config, name in before:
        config._attn_implementation = _registered(name)
    for module, see in attentions.items():
        setattr(module, _SEEN_BY, see)

    def end() -> None:
        for config, name in before:
            config._attn_implementation = name
        for module in attentions:
            delattr(module, _SEEN_BY)

    return end


def _registered(name: str) -> str:
    """The name behind which `name` does the work, masks included."""
    from transformers import AttentionInterface, AttentionMaskInterface

    ours = f"{PREFIX}{name}"
    AttentionInterface.register(ours, _seen(name))
    masks = AttentionMaskInterface()
    if name in masks:
        AttentionMaskInterface.register(ours, masks[name])
    return ours


def _seen(name: str) -> Callable[..., Any]:
    """transformers' interface to attention."""
    from transformers import AttentionInterface

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        see: See | None = getattr(module, _SEEN_BY, None)
        if see is not None:
            query, key, value = see(query, key, value)
        # "eager" is a function beside each model's own modules.
        own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        return AttentionInterface().get(name, own)(module, query, key, value, *args, **kwargs)

    return attend
