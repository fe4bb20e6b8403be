"""Decoder-only Hugging Face models as `TokenModel`: one prompt cache a row, beams as queries behind it.

The prompt's keys and values are computed and held once a row. A beam's token is one more position of its row, placed
by ``position_ids`` right after the prompt and kept apart from the other beams by the attention mask, so no cache is
ever copied or reordered. Works for models that take a 4-D mask and position ids (Llama, Qwen, Mistral, GPT-2 ...) with
"sdpa" or "eager" attention. ``model.get_decoder().compile(dynamic=True)`` beforehand is possible (tried on the CPU: the
same lists, no graph break, half a minute once) and left to the caller, as it pays only where batches are many.
"""

import copy
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from genrec_bench.methods.decoding.tokens import Prompt, unwrapped


@dataclass
class _State:
    cache: Any
    lengths: Tensor  # (B, 1) int64, real positions of each prompt
    closed: Tensor | None  # (B, 1, 1, P) additive: the lowest number at padding; None where nothing is padded
    positions: int  # P


class CausalTokens:
    """A causal language model of transformers, bare or wrapped by peft (adapters stay active)."""

    def __init__(self, model: nn.Module):
        bare = unwrapped(model)
        self.config = bare.config.get_text_config(decoder=True)
        self.body = bare.get_decoder()
        self.head = bare.get_output_embeddings()
        self._weight, self._bias = head_weight(self.head)

    @property
    def vocabulary_size(self) -> int:
        return len(self._weight)

    def start(self, prompt: Prompt, room: int) -> tuple[Tensor, _State]:
        """See `TokenModel.start`. Raises ValueError where sliding-window attention would cut the prompt."""
        from genrec_bench.methods.decoding.hf_cache import tree_cache

        if self.body.training:
            raise ValueError("The model is in training mode, where dropout would blur the scores: call eval() first")
        attention = self.config._attn_implementation
        if attention not in ("sdpa", "eager"):
            raise ValueError(
                f"Tree decoding needs sdpa or eager attention, which take a mask; the model has {attention}"
            )
        self._weight, self._bias = head_weight(self.head)  # an adapter may have learned since
        given = prompt.tokens if prompt.embeddings is None else prompt.embeddings
        assert given is not None
        batch, length = given.shape[:2]
        self._check_window(length + room)
        device = self._weight.device
        cache = tree_cache(self.config.num_hidden_layers, room)
        if prompt.mask is None:
            lengths = torch.full((batch, 1), length, device=device)
            positions = torch.arange(length, device=device).unsqueeze(0)
            mask = closed = None
        else:
            mask = prompt.mask.to(device)
            lengths = mask.sum(1, keepdim=True)
            positions = (mask.long().cumsum(1) - 1).clamp(min=0)
            closed = additive(mask[:, None, None], self._dtype())
        inputs = {"input_ids" if prompt.embeddings is None else "inputs_embeds": given.to(device)}
        out = self.body(**inputs, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        return out.last_hidden_state[:, -1], _State(cache, lengths, closed, length)

    def extend(self, state: _State, tokens: Tensor, depth: int | Tensor, visible: Tensor) -> Tensor:
        """See `TokenModel.extend`."""
        batch, count = tokens.shape
        prompt = visible.new_zeros((), dtype=self._dtype()) if state.closed is None else state.closed
        tree = additive(visible[:, None], self._dtype())
        mask = torch.cat(
            [prompt.expand(batch, 1, count, state.positions), tree.expand(batch, 1, count, tree.shape[-1])], dim=-1
        )
        after = depth - 1 if isinstance(depth, int) else (depth - 1).to(tokens.device)
        positions = (state.lengths + after).expand(batch, count)
        out = self.body(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=state.cache, use_cache=True
        )
        hidden: Tensor = out.last_hidden_state
        return hidden

    def rewind(self, state: _State) -> None:
        """See `TokenModel.rewind`."""
        for layer in state.cache.layers:
            layer.cut(state.positions)

    def logits(self, hidden: Tensor, tokens: Tensor | slice | None) -> Tensor:
        """See `TokenModel.logits`; with the scaling and capping that Gemma, Cohere and Granite put behind the head."""
        weight, bias = self._weight, self._bias
        if tokens is not None:
            weight, bias = weight[tokens], bias if bias is None else bias[tokens]
        logits = nn.functional.linear(hidden, weight, bias)
        if (scale := getattr(self.config, "logit_scale", None)) is not None:
            logits = logits * scale
        if (divisor := getattr(self.config, "logits_scaling", None)) is not None:
            logits = logits / divisor
        if (cap := getattr(self.config, "final_logit_softcapping", None)) is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits

    def among(self, tokens: Tensor) -> Self:
        """See `TokenModel.among`."""
        found = copy.copy(self)
        found._weight, found._bias = self._weight[tokens], None if self._bias is None else self._bias[tokens]
        return found

    def _dtype(self) -> torch.dtype:
        return self._weight.dtype

    def _check_window(self, positions: int) -> None:
        window = getattr(self.config, "sliding_window", None)
        slides = getattr(self.config, "use_sliding_window", True)
        if window is not None and slides and positions > window:
            raise ValueError(f"{positions} positions do not fit the model's sliding window of {window}")


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible, the lowest number elsewhere."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, torch.finfo(dtype).min)


def head_weight(head: Any) -> tuple[Tensor, Tensor | None]:
    """Weight (V, h) and bias (V,) that an output head applies, peft's learned tokens and low-rank updates included."""
    if hasattr(head, "get_delta_weight"):  # peft's LoRA layers, whose .weight is the untouched one
        base = head.get_base_layer()
        weight = base.weight
        if not head.merged and not head.disable_adapters:
            for adapter in head.active_adapters:
                if adapter in head.lora_A:
                    weight = weight + head.get_delta_weight(adapter)
        return weight, base.bias
    return head.weight, getattr(head, "bias", None)  # of trainable token indices, .weight is the merged weight
