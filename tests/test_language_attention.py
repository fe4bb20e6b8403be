"""Attention by blocks of queries against the models' own plain attention."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.models.gemma2 import Gemma2Config

from genrec_bench.methods.decoding.causal import additive
from genrec_bench.methods.language import attention

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 30}


def two_sequences_a_row(lengths: tuple[int, int]) -> torch.Tensor:
    """(1, T, T), true where a position sees: what stands before it in its own sequence."""
    owner = torch.tensor([0] * lengths[0] + [1] * lengths[1])
    return ((owner[:, None] == owner[None, :]) & torch.ones(len(owner), len(owner), dtype=torch.bool).tril())[None]


@pytest.mark.parametrize("block", [1, 4, 9, 100])
@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZES),
        LlamaConfig(**SIZES, num_key_value_heads=2),
        MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=None),
        Qwen2Config(**SIZES, num_key_value_heads=1),
        Qwen3Config(**SIZES, num_key_value_heads=4, head_dim=4),
    ],
    ids=["llama", "grouped", "mistral", "qwen2", "qwen3"],
)
def test_states_and_gradients_are_those_of_plain_attention(config, block, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", block)
    assert attention.applies(config)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    tokens, visible = torch.randint(30, (3, 9)), two_sequences_a_row((5, 4)).expand(3, 9, 9)
    found = {}
    for name in ("eager", attention.register()):
        model.set_attn_implementation(name)
        model.zero_grad()
        logits = model(tokens, attention_mask=additive(visible[:, None], torch.float32)).logits
        logits.square().sum().backward()
        found[name] = [logits.detach()] + [value.grad.clone() for value in model.parameters()]
    for plain, blocks in zip(*found.values(), strict=True):
        torch.testing.assert_close(blocks, plain, rtol=1e-4, atol=1e-5)


def test_under_autocast_products_are_bfloat16_and_states_float32_close():
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 4, 50, 8, requires_grad=True) for _ in range(3))
    mask = additive(two_sequences_a_row((30, 20))[:, None], torch.float32).expand(2, 1, 50, 50)
    whole, _ = attention.causal_attention(None, query, key, value, mask, 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        low, _ = attention.causal_attention(None, query, key, value, mask, 0.3)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), whole, rtol=0.02, atol=0.02)
    low.float().sum().backward()
    assert query.grad.dtype == torch.float32


@pytest.mark.parametrize(
    "config",
    [Gemma2Config(**SIZES), LlamaConfig(**SIZES, attention_dropout=0.1), MistralConfig(**SIZES, sliding_window=3)],
    ids=["another family", "dropout", "window"],
)
def test_models_with_more_to_their_attention_keep_it(config):
    assert not attention.applies(config)
