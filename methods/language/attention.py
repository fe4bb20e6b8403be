"""Attention of decoder-only models in training on a CPU: by blocks of queries, in the precision of the products.

The models' own plain attention computes all of the (T, T) scores of a row, half of which a causal mask closes, and
copies them to float32 and back for the softmax; torch's fused kernel is slow in its backward pass there. Here a block
of queries meets only the keys up to its own end, and the softmax (in float32 inside) reads and writes bfloat16.
"""

from typing import Any

import torch
from torch import Tensor, nn

NAME = "causal_blocks"  # among the attention functions of transformers
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # whose attention is this and nothing more
BLOCK = 128  # queries


def applies(config: Any) -> bool:
    """Whether a model with this transformers config can be trained with `causal_attention`."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return config.model_type in FAMILIES and not getattr(config, "attention_dropout", 0.0) and window is None


def register() -> str:
    """Make `causal_attention` known to transformers; its name there."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, causal_attention)
    return NAME


def causal_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """(R, T, H, d) from query (R, H, T, d), key and value (R, H or fewer, T, d), additive mask (R, 1, T, T).

    The mask must close all later positions.
    """
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    mask = attention_mask.to(dtype)
    out: Tensor = _Blocks.apply((query * scaling).to(dtype), key.to(dtype), value.to(dtype), mask)
    return out.transpose(1, 2).contiguous(), None


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        out, shares = torch.empty_like(query), []
        with torch.autocast(query.device.type, enabled=False):
            for first, last in _blocks(query):
                scores = query[:, :, first:last] @ key[:, :, :last].transpose(2, 3)
                share = scores.add_(mask[:, :, first:last, :last]).softmax(-1)
                out[:, :, first:last] = share @ value[:, :, :last]
                shares.append(share)
        ctx.save_for_backward(query, key, value, *shares)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, *shares = ctx.saved_tensors
        of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for (first, last), share in zip(_blocks(query), shares, strict=True):
            gradient = gradients[0][:, :, first:last]
            of_value[:, :, :last] += share.transpose(2, 3) @ gradient
            of_share = gradient @ value[:, :, :last].transpose(2, 3)
            of_scores = torch._softmax_backward_data(of_share, share, -1, share.dtype)
            of_query[:, :, first:last] = of_scores @ key[:, :, :last]
            of_key[:, :, :last] += of_scores.transpose(2, 3) @ query[:, :, first:last]
        return of_query, of_key, of_value, None


def _blocks(query: Tensor) -> list[tuple[int, int]]:
    length = query.shape[2]
    return [(first, min(first + BLOCK, length)) for first in range(0, length, BLOCK)]
