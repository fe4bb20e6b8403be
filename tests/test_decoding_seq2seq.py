"""T5 models: the search equals Hugging Face's."""

import pytest
import torch
from decoding_reference import (
    END_ID,
    assert_same,
    brute_force,
    hugging_face,
    ours,
    random_index,
    random_prompt,
    tiny_llama,
    tiny_t5,
    token_ids,
    vocabulary_size,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_bench.methods.decoding.beam import beam_search
from genrec_bench.methods.decoding.ranking import rank_items
from genrec_bench.methods.decoding.seq2seq import Seq2SeqTokens
from genrec_bench.methods.decoding.tokens import Prompt
from genrec_bench.methods.decoding.trie import ItemTrie

pytest.importorskip("transformers")
FLAN = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}  # T5 1.1, Flan-T5: gated, output not scaled


@settings(max_examples=25)
@given(
    seed=st.integers(0, 1000),
    items=st.integers(1, 60),
    sizes=st.sampled_from([(6, 5, 7), (4, 5, 6, 4), (9,), (3, 2, 3, 2, 3, 2)]),
    variable=st.booleans(),
    ragged=st.booleans(),
    normalise=st.sampled_from(["vocabulary", "trie"]),
    changes=st.sampled_from([{}, FLAN]),
)
def test_same_lists_and_scores_as_generate(seed, items, sizes, variable, ragged, normalise, changes):
    index = random_index(seed, items, sizes, variable)
    ids, vocabulary = token_ids(index, seed), vocabulary_size(index)
    model, prompt = tiny_t5(vocabulary, seed, **changes), random_prompt(vocabulary, 3, 6, ragged, seed)
    trie = ItemTrie.from_index(index)
    beams = beam_search(Seq2SeqTokens(model), prompt, trie, ids, 7, end_id=END_ID, normalise=normalise)
    expected = hugging_face(model, prompt, index, ids, 7, renormalise=normalise == "trie")
    assert_same(ours(beams, trie, index), expected)


def problem(seed: int = 0):
    index = random_index(seed, 80, [6, 5, 7])
    ids, vocabulary = token_ids(index, seed), vocabulary_size(index)
    return index, ItemTrie.from_index(index), ids, vocabulary, random_prompt(vocabulary, 4, 7, True, seed)


def test_mt5():
    from transformers import MT5Config, MT5ForConditionalGeneration

    index, trie, ids, vocabulary, prompt = problem()
    torch.manual_seed(0)
    config = MT5Config(
        vocab_size=vocabulary, d_model=16, d_kv=6, d_ff=24, num_layers=2, num_heads=3, eos_token_id=None,
        pad_token_id=0, decoder_start_token_id=0, initializer_factor=2.0,
    )  # fmt: skip
    model = MT5ForConditionalGeneration(config).eval()
    assert_same(ours(beam_search(Seq2SeqTokens(model), prompt, trie, ids, 6), trie, index),
                hugging_face(model, prompt, index, ids, 6))  # fmt: skip


@pytest.mark.parametrize(("changes", "scaled"), [({}, True), (FLAN, False)])
def test_scaling_before_the_head_follows_the_model(changes, scaled):
    model = tiny_t5(30, **changes)
    model.train()  # dropout must not blur what is asked
    assert Seq2SeqTokens(model)._scale == (16**-0.5 if scaled else 1.0)


def test_embeddings_stand_in_for_tokens():
    _, trie, ids, vocabulary, prompt = problem()
    model = tiny_t5(vocabulary)
    embedded = Prompt(None, prompt.mask, model.get_input_embeddings()(prompt.tokens).detach())
    plain = beam_search(Seq2SeqTokens(model), prompt, trie, ids, 6)
    assert torch.equal(plain.leaves, beam_search(Seq2SeqTokens(model), embedded, trie, ids, 6).leaves)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loses_no_more_than_the_model_itself(dtype):
    index, trie, ids, vocabulary, prompt = problem()
    exact = brute_force(tiny_t5(vocabulary), prompt, index, ids, "level")
    model = tiny_t5(vocabulary).to(dtype)
    its_own = brute_force(model, prompt, index, ids, "level")
    items, scores = rank_items(beam_search(Seq2SeqTokens(model), prompt, trie, ids, 40, normalise="level"), trie, 20)
    assert scores.dtype == torch.float32
    lost, lost_itself = ((found - exact.gather(1, items)).abs().mean() for found in (scores, its_own.gather(1, items)))
    assert lost < 1.5 * lost_itself + 0.02


def test_adapters_stay_active():
    peft = pytest.importorskip("peft")
    index, trie, ids, vocabulary, prompt = problem()
    torch.manual_seed(1)
    model = peft.get_peft_model(tiny_t5(vocabulary), peft.LoraConfig(r=2, target_modules=["q", "v", "wo"])).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    found = ours(beam_search(Seq2SeqTokens(model), prompt, trie, ids, 6), trie, index)
    assert_same(found, hugging_face(model, prompt, index, ids, 6))
    merged = model.merge_and_unload()
    assert_same(found, ours(beam_search(Seq2SeqTokens(merged), prompt, trie, ids, 6), trie, index), 1e-4)


def test_other_families_are_refused():
    with pytest.raises(ValueError, match="T5 family"):
        Seq2SeqTokens(tiny_llama(20))


def test_training_mode_is_refused():
    _, trie, ids, vocabulary, prompt = problem()
    with pytest.raises(ValueError, match="eval"):
        beam_search(Seq2SeqTokens(tiny_t5(vocabulary).train()), prompt, trie, ids, 6)
