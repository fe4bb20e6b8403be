"""Encoder-decoder models of the T5 family as `TokenModel`: beams are queries of one decoder sequence a row.

The encoder runs once a row, and so do the keys and values of cross-attention, which Hugging Face's beam search repeats
for every beam. The decoder's blocks are walked by hand with the modules' own weights (adapters included), because its
forward places tokens by order, and here the beams of one depth share a position: the relative bias of two tokens is
that of the difference of their depths.
"""

import copy
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from genrec_bench.methods.decoding.causal import additive, head_weight
from genrec_bench.methods.decoding.tokens import Prompt, unwrapped

KeysValues = tuple[Tensor, Tensor]


@dataclass
class _State:
    crossed: list[KeysValues]  # per block, of the encoder's output: (B, heads, P, head width) each
    closed: Tensor | None  # (B, 1, 1, P) additive mask of the padding; None where nothing is padded
    room: int  # places of decoder tokens, the start token's included
    own: list[KeysValues] = field(default_factory=list)  # per block, of the decoder's tokens: (B, heads, room, width)
    depths: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))  # on the host, the start's is 0


class Seq2SeqTokens:
    """T5, Flan-T5 or mT5 for conditional generation, bare or wrapped by peft (adapters stay active)."""

    def __init__(self, model: nn.Module):
        bare = unwrapped(model)
        if not hasattr(bare.get_decoder(), "block"):
            raise ValueError(f"Tree decoding knows encoder-decoder models of the T5 family, not {type(bare).__name__}")
        self.config = bare.config
        self.encoder, self.decoder = bare.get_encoder(), bare.get_decoder()
        self.head = bare.get_output_embeddings()
        self._weight, self._bias = head_weight(self.head)
        self._scale = _scale_before_head(bare)

    @property
    def vocabulary_size(self) -> int:
        return len(self._weight)

    def start(self, prompt: Prompt, room: int) -> tuple[Tensor, _State]:
        """See `TokenModel.start`; the tree hangs below the decoder's start token."""
        if self.decoder.training:
            raise ValueError("The model is in training mode, where dropout would blur the scores: call eval() first")
        self._weight, self._bias = head_weight(self.head)
        device, dtype = self._weight.device, self._weight.dtype
        mask = None if prompt.mask is None else prompt.mask.to(device)
        given = prompt.tokens if prompt.embeddings is None else prompt.embeddings
        assert given is not None
        inputs = {"input_ids" if prompt.embeddings is None else "inputs_embeds": given.to(device)}
        encoded = self.encoder(**inputs, attention_mask=mask).last_hidden_state
        crossed = []
        for block in self.decoder.block:
            attention = block.layer[1].EncDecAttention
            crossed.append((_heads(attention, attention.k(encoded)), _heads(attention, attention.v(encoded))))
        closed = None if mask is None else additive(mask[:, None, None], dtype)
        state = _State(crossed, closed, room + 1)
        first = torch.full((len(given), 1), self.config.decoder_start_token_id, device=device)
        alone = torch.ones(1, 1, 1, dtype=torch.bool, device=device)
        return self._decode(state, first, torch.zeros(1, dtype=torch.int64), alone)[:, 0], state

    def extend(self, state: _State, tokens: Tensor, depth: int | Tensor, visible: Tensor) -> Tensor:
        """See `TokenModel.extend`."""
        depths = torch.full((tokens.shape[1],), depth) if isinstance(depth, int) else depth
        sees_start = visible.new_ones(*visible.shape[:2], 1)
        return self._decode(state, tokens, depths, torch.cat([sees_start, visible], dim=-1))

    def rewind(self, state: _State) -> None:
        """See `TokenModel.rewind`."""
        state.depths = state.depths[:1]

    def logits(self, hidden: Tensor, tokens: Tensor | slice | None) -> Tensor:
        """See `TokenModel.logits`."""
        weight, bias = self._weight, self._bias
        if tokens is not None:
            weight, bias = weight[tokens], bias if bias is None else bias[tokens]
        return nn.functional.linear(hidden * self._scale, weight, bias)

    def among(self, tokens: Tensor) -> Self:
        """See `TokenModel.among`."""
        found = copy.copy(self)
        found._weight, found._bias = self._weight[tokens], None if self._bias is None else self._bias[tokens]
        return found

    def _decode(self, state: _State, tokens: Tensor, depths: Tensor, visible: Tensor) -> Tensor:
        """Hidden states (B, n, h) of tokens at depths (n,), which see those of (B or 1, n, t + n) that are marked."""
        filled = len(state.depths)
        state.depths = torch.cat([state.depths, depths])
        distance = (depths[:, None] - state.depths[None, :]).clamp(min=0)
        hidden = self.decoder.embed_tokens(tokens)
        closed = additive(visible[:, None], hidden.dtype)
        mask = closed
        for number, block in enumerate(self.decoder.block):
            attention = block.layer[0].SelfAttention
            if attention.has_relative_attention_bias:
                mask = closed + _bias_of(attention, distance).to(hidden.dtype)
            normed = block.layer[0].layer_norm(hidden)
            own = self._append(state, number, filled, attention, normed)
            hidden = hidden + _attend(attention, normed, own, mask)
            hidden = _finite(hidden)
            normed = block.layer[1].layer_norm(hidden)
            hidden = hidden + _attend(block.layer[1].EncDecAttention, normed, state.crossed[number], state.closed)
            hidden = _finite(block.layer[2](_finite(hidden)))
        result: Tensor = self.decoder.final_layer_norm(hidden)
        return result

    @staticmethod
    def _append(state: _State, number: int, filled: int, attention: Any, normed: Tensor) -> KeysValues:
        """Keys and values of block ``number`` so far, those of ``normed`` (B, n, h) put behind the others."""
        new = _heads(attention, attention.k(normed)), _heads(attention, attention.v(normed))
        if number == len(state.own):
            batch, heads, _, width = new[0].shape
            room = batch, heads, state.room, width
            state.own.append((normed.new_empty(room), normed.new_empty(room)))
        end = filled + normed.shape[1]
        keys, values = state.own[number]
        keys[:, :, filled:end], values[:, :, filled:end] = new
        return keys[:, :, :end], values[:, :, :end]


def _heads(attention: Any, projected: Tensor) -> Tensor:
    """(B, n, heads * width) as (B, heads, n, width)."""
    return projected.unflatten(-1, (-1, attention.key_value_proj_dim)).transpose(1, 2)


def _attend(attention: Any, normed: Tensor, keys_values: KeysValues, mask: Tensor | None) -> Tensor:
    """T5's attention (no scaling), (B, n, h)."""
    query = _heads(attention, attention.q(normed))
    mixed = nn.functional.scaled_dot_product_attention(query, *keys_values, attn_mask=mask, scale=1.0)
    out: Tensor = attention.o(mixed.transpose(1, 2).flatten(2))
    return out


def _bias_of(attention: Any, distance: Tensor) -> Tensor:
    """Relative position bias (1, heads, n, T) for distances (n, T) on the host, query's depth minus key's."""
    furthest = int(distance.max())
    device = attention.relative_attention_bias.weight.device
    by_key = attention.compute_bias(1, furthest + 1, device=device, past_seen_tokens=furthest)  # key 0 is the furthest
    bias: Tensor = by_key[:, :, 0, (furthest - distance).to(device)]
    return bias


def _finite(hidden: Tensor) -> Tensor:
    """T5 overflows in float16; its own blocks clamp at the same three places."""
    if hidden.dtype != torch.float16:
        return hidden
    largest = torch.finfo(hidden.dtype).max - 1000
    return hidden.clamp(-largest, largest)


def _scale_before_head(model: Any) -> float:
    """What the model multiplies the decoder's output with before its head: 1 or d_model ** -0.5.

    T5 scales and Flan-T5 does not; which config field says so has changed between versions of transformers, and mT5
    has its own rule, so one forward of one token is asked.
    """
    seen: dict[str, Tensor] = {}
    hooks = [
        model.get_decoder().register_forward_hook(lambda _, __, out: seen.update(out=out[0])),
        model.get_output_embeddings().register_forward_pre_hook(lambda _, args: seen.update(head=args[0])),
    ]
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            one = torch.full((1, 1), model.config.decoder_start_token_id, device=device)
            model(input_ids=one, decoder_input_ids=one, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    out, head = seen["out"].float(), seen["head"].float()
    ratio = float((out * head).sum() / (out * out).sum())
    scaled = model.config.d_model**-0.5
    return 1.0 if abs(ratio - 1.0) < abs(ratio - scaled) else scaled
