"""Decoder-only models: the search equals Hugging Face's, whatever the wrapper, the mask, the dtype."""

import numpy as np
import pytest
import torch
from conftest import make_histories
from decoding_reference import (
    END_ID,
    assert_same,
    brute_force,
    exact_lists,
    hugging_face,
    ours,
    random_index,
    random_prompt,
    tiny_llama,
    token_ids,
    vocabulary_size,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_bench.methods.decoding.beam import beam_search
from genrec_bench.methods.decoding.causal import CausalTokens
from genrec_bench.methods.decoding.ranking import decode, rank_items
from genrec_bench.methods.decoding.tokens import Prompt
from genrec_bench.methods.decoding.trie import ItemTrie

pytest.importorskip("transformers")


@settings(max_examples=25)
@given(
    seed=st.integers(0, 1000),
    items=st.integers(1, 60),
    sizes=st.sampled_from([(6, 5, 7), (4, 5, 6, 4), (9,), (3, 12)]),
    variable=st.booleans(),
    ragged=st.booleans(),
    normalise=st.sampled_from(["vocabulary", "trie"]),
    width=st.sampled_from([2, 4, 9]),
)
def test_same_lists_and_scores_as_generate(seed, items, sizes, variable, ragged, normalise, width):
    index = random_index(seed, items, sizes, variable)
    ids, vocabulary = token_ids(index, seed), vocabulary_size(index)
    model, prompt = tiny_llama(vocabulary, seed), random_prompt(vocabulary, 3, 6, ragged, seed)
    trie = ItemTrie.from_index(index)
    beams = beam_search(CausalTokens(model), prompt, trie, ids, width, end_id=END_ID, normalise=normalise)
    expected = hugging_face(model, prompt, index, ids, width, renormalise=normalise == "trie")
    assert_same(ours(beams, trie, index), expected)


def problem(seed: int = 0, ragged: bool = True):
    index = random_index(seed, 80, [6, 5, 7])
    ids, vocabulary = token_ids(index, seed), vocabulary_size(index)
    return index, ItemTrie.from_index(index), ids, vocabulary, random_prompt(vocabulary, 4, 7, ragged, seed)


def other_models(vocabulary: int):
    from transformers import (
        Gemma2Config,
        Gemma2ForCausalLM,
        GPT2Config,
        GPT2LMHeadModel,
        MistralConfig,
        MistralForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    shape = {
        "vocab_size": vocabulary, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.4, "eos_token_id": None,
    }  # fmt: skip
    gpt2 = {"n_embd": 16, "n_layer": 2, "n_head": 4, "initializer_range": 0.4, "eos_token_id": None}
    torch.manual_seed(0)
    yield "qwen2", Qwen2ForCausalLM(Qwen2Config(**shape))
    yield "qwen2 tied", Qwen2ForCausalLM(Qwen2Config(**shape, tie_word_embeddings=True))
    yield "mistral", MistralForCausalLM(MistralConfig(**shape))
    yield "gemma2", Gemma2ForCausalLM(Gemma2Config(**shape, head_dim=4, query_pre_attn_scalar=4))
    yield "gpt2", GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **gpt2))


def test_other_architectures():
    index, trie, ids, vocabulary, prompt = problem()
    for name, model in other_models(vocabulary):
        beams = beam_search(CausalTokens(model.eval()), prompt, trie, ids, 6)
        expected = hugging_face(model, prompt, index, ids, 6)
        try:
            assert_same(ours(beams, trie, index), expected)
        except AssertionError as error:
            raise AssertionError(name) from error


def test_eager_attention_and_a_sliding_window():
    index, trie, ids, vocabulary, prompt = problem()
    model = tiny_llama(vocabulary, attn_implementation="eager")
    assert_same(ours(beam_search(CausalTokens(model), prompt, trie, ids, 6), trie, index),
                hugging_face(model, prompt, index, ids, 6))  # fmt: skip
    model.config.sliding_window = 12
    with pytest.raises(ValueError, match="sliding window"):
        beam_search(CausalTokens(model), prompt, trie, ids, 6)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="sdpa or eager"):
        beam_search(CausalTokens(model), prompt, trie, ids, 6)


def test_embeddings_stand_in_for_tokens():
    _, trie, ids, vocabulary, prompt = problem()
    model = tiny_llama(vocabulary)
    embedded = Prompt(None, prompt.mask, model.get_input_embeddings()(prompt.tokens).detach())
    plain = beam_search(CausalTokens(model), prompt, trie, ids, 6)
    again = beam_search(CausalTokens(model), embedded, trie, ids, 6)
    assert torch.equal(plain.leaves, again.leaves)


def test_a_row_does_not_depend_on_its_batch():
    """Padded next to longer prompts, or alone and unpadded: the same list, scores within rounding."""
    _, trie, ids, vocabulary, _ = problem()
    model = CausalTokens(tiny_llama(vocabulary))
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 30, 12))])
    tokens = rng.integers(5, vocabulary, offsets[-1])
    together = decode(model, offsets, tokens, trie, ids, 10)
    alone = decode(model, offsets, tokens, trie, ids, 10, token_budget=1)
    assert np.array_equal(together[0], alone[0])
    np.testing.assert_allclose(together[1], alone[1], atol=1e-5)


def test_decode_takes_embeddings_and_allowed_items():
    """Embeddings are asked for a batch's padded tokens and row numbers; what is not allowed does not appear."""
    _, trie, ids, vocabulary, _ = problem()
    model = tiny_llama(vocabulary)
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 9, 7))])
    tokens = rng.integers(5, vocabulary, offsets[-1])
    allowed = make_histories([rng.choice(80, 12, replace=False).tolist() for _ in range(7)])

    def embed(prompt, rows):
        assert np.array_equal(prompt.tokens[:, -1].numpy(), tokens[offsets[rows + 1] - 1])
        return model.get_input_embeddings()(prompt.tokens).detach()

    options = {"width": 80, "token_budget": 600, "allowed": allowed}
    plain = decode(CausalTokens(model), offsets, tokens, trie, ids, 15, **options)
    again = decode(CausalTokens(model), offsets, tokens, trie, ids, 15, embed=embed, **options)
    assert np.array_equal(plain[0], again[0])
    assert [set(row[row >= 0].tolist()) for row in plain[0]] == [set(allowed.row(b).tolist()) for b in range(7)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loses_no_more_than_the_model_itself(dtype):
    index, trie, ids, vocabulary, prompt = problem()
    exact = brute_force(tiny_llama(vocabulary), prompt, index, ids, "level")
    model = tiny_llama(vocabulary).to(dtype)
    its_own = brute_force(model, prompt, index, ids, "level")
    items, scores = rank_items(beam_search(CausalTokens(model), prompt, trie, ids, 40, normalise="level"), trie, 20)
    assert scores.dtype == torch.float32
    lost, lost_itself = ((found - exact.gather(1, items)).abs().mean() for found in (scores, its_own.gather(1, items)))
    assert lost < 1.5 * lost_itself + 0.02


def adapted(model, **options):
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", *options.pop("more", [])], **options)
    wrapped = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name or "trainable_tokens" in name:
                parameter.add_(torch.randn_like(parameter))
    return wrapped


@pytest.mark.parametrize(
    ("tied", "options"),
    [
        (False, {}),
        (False, {"more": ["lm_head"]}),
        (True, {"trainable_token_indices": [6, 7, 9]}),
        (False, {"trainable_token_indices": {"embed_tokens": [6, 7], "lm_head": [7, 8]}}),
        (False, {"modules_to_save": ["lm_head", "embed_tokens"]}),
    ],
)
def test_adapters_stay_active(tied, options):
    index, trie, ids, vocabulary, prompt = problem()
    model = adapted(tiny_llama(vocabulary, tie_word_embeddings=tied), **options)
    found = ours(beam_search(CausalTokens(model), prompt, trie, ids, 6), trie, index)
    assert_same(found, hugging_face(model, prompt, index, ids, 6))
    merged = model.merge_and_unload()
    assert_same(found, ours(beam_search(CausalTokens(merged), prompt, trie, ids, 6), trie, index), 1e-4)


def test_an_adapter_may_learn_between_two_searches():
    index, trie, ids, vocabulary, prompt = problem()
    model = adapted(tiny_llama(vocabulary), more=["lm_head"])
    tokens = CausalTokens(model)
    beam_search(tokens, prompt, trie, ids, 6)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(-0.5)
    assert_same(ours(beam_search(tokens, prompt, trie, ids, 6), trie, index),
                hugging_face(model, prompt, index, ids, 6))  # fmt: skip


def test_the_best_items_are_those_of_teacher_forcing():
    index, trie, ids, vocabulary, prompt = problem()
    model = tiny_llama(vocabulary)
    for normalise in ("vocabulary", "level", "trie"):
        beams = beam_search(CausalTokens(model), prompt, trie, ids, trie.num_leaves, normalise=normalise)
        scores = brute_force(model, prompt, index, ids, normalise)
        items, _ = rank_items(beams, trie, 10)
        expected = torch.tensor(exact_lists(scores, index, 10))
        torch.testing.assert_close(scores.gather(1, items), scores.gather(1, expected), atol=1e-4, rtol=1e-5)


def test_training_mode_is_refused():
    _, trie, ids, vocabulary, prompt = problem()
    with pytest.raises(ValueError, match="eval"):
        beam_search(CausalTokens(tiny_llama(vocabulary).train()), prompt, trie, ids, 6)
