"""The exact scorer against teacher forcing, and the beam against the exact scorer."""

import pytest
import torch
from decoding_reference import (
    END_ID,
    Bag,
    brute_force,
    random_index,
    random_prompt,
    tiny_llama,
    tiny_t5,
    token_ids,
    vocabulary_size,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_bench.methods.decoding.beam import Beams, beam_search
from genrec_bench.methods.decoding.exact import beam_loss, exact_scores
from genrec_bench.methods.decoding.trie import ItemTrie


def problem(index, seed):
    vocabulary = vocabulary_size(index)
    return ItemTrie.from_index(index), token_ids(index, seed), random_prompt(vocabulary, 3, 5, ragged=True, seed=seed)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1000),
    items=st.integers(1, 40),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    variable=st.booleans(),
    normalise=st.sampled_from(["vocabulary", "level", "trie"]),
    chunk=st.integers(1, 12),
)
def test_scores_are_those_of_teacher_forcing(seed, items, sizes, variable, normalise, chunk):
    index = random_index(seed, items, sizes, variable)
    trie, ids, prompt = problem(index, seed)
    model = Bag(vocabulary_size(index))
    found = exact_scores(model, prompt, trie, ids, end_id=END_ID, normalise=normalise, chunk=chunk)
    expected = brute_force(model, prompt, index, ids, normalise)
    torch.testing.assert_close(found[:, trie.leaf_of_item], expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("build", [tiny_llama, tiny_t5])
@pytest.mark.parametrize("variable", [False, True])
def test_language_models_read_the_tree_in_chunks(build, variable):
    pytest.importorskip("transformers")
    from genrec_bench.methods.decoding.causal import CausalTokens
    from genrec_bench.methods.decoding.seq2seq import Seq2SeqTokens

    index = random_index(3, 50, [5, 6, 4, 3], variable)
    trie, ids, prompt = problem(index, 3)
    model = build(vocabulary_size(index))
    adapter = (CausalTokens if build is tiny_llama else Seq2SeqTokens)(model)
    for normalise in ("vocabulary", "level", "trie"):
        expected = brute_force(model, prompt, index, ids, normalise)
        for chunk in (7, 256):
            found = exact_scores(adapter, prompt, trie, ids, end_id=END_ID, normalise=normalise, chunk=chunk)
            torch.testing.assert_close(found[:, trie.leaf_of_item], expected, atol=1e-4, rtol=1e-5)


def test_beam_loss_counts_what_a_narrow_beam_misses():
    index = random_index(5, 60, [6, 6, 6])
    trie, ids, prompt = problem(index, 5)
    model = Bag(vocabulary_size(index))
    exact = exact_scores(model, prompt, trie, ids)
    losses = [beam_loss(beam_search(model, prompt, trie, ids, width), exact, 10) for width in (1, 10, trie.num_leaves)]
    assert (losses[0] >= 0.9).all()
    assert (losses[1] <= losses[0]).all()
    assert (losses[2] == 0).all()
    half = exact.topk(4, dim=1).indices
    half[:, 2:] = -1
    assert torch.equal(beam_loss(Beams(half, half.float()), exact, 4), torch.full((3,), 0.5))
