"""The processor inside Hugging Face's own search gives what the callback gives."""

import pytest
import torch
from decoding_reference import (
    END_ID,
    PAD,
    assert_same,
    dict_trie,
    generate,
    hugging_face,
    named,
    random_index,
    random_prompt,
    tiny_llama,
    tiny_t5,
    token_ids,
    vocabulary_size,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_bench.methods.decoding.trie import ItemTrie

pytest.importorskip("transformers")


@settings(max_examples=20)
@given(
    seed=st.integers(0, 1000),
    items=st.integers(1, 60),
    variable=st.booleans(),
    renormalise=st.booleans(),
    build=st.sampled_from([tiny_llama, tiny_t5]),
)
def test_same_lists_and_scores_as_the_callback(seed, items, variable, renormalise, build):
    from genrec_bench.methods.decoding.processor import TrieLogitsProcessor

    index = random_index(seed, items, [4, 5, 6], variable)
    ids, vocabulary = token_ids(index, seed), vocabulary_size(index)
    model, prompt = build(vocabulary, seed), random_prompt(vocabulary, 3, 6, ragged=True, seed=seed)
    length = 1 if model.config.is_encoder_decoder else 6
    processor = TrieLogitsProcessor(ItemTrie.from_index(index), ids, length, END_ID, PAD)
    found = generate(model, prompt, index, ids, 5, logits_processor=[processor], renormalize_logits=renormalise)
    assert_same(named(*found, index, ids), hugging_face(model, prompt, index, ids, 5, renormalise))


@settings(max_examples=50)
@given(st.integers(0, 1000), st.booleans(), st.sampled_from([PAD, END_ID]), st.data())
def test_any_prefix_leaves_its_allowed_tokens_only(seed, variable, pad, data):
    """Also prefixes that left the trie or are complete, and a padding token that is the end token, as GPT-2's is."""
    from genrec_bench.methods.decoding.processor import TrieLogitsProcessor

    index = random_index(seed, 12, [3, 4, 3], variable)
    ids, vocabulary = token_ids(index, seed), vocabulary_size(index)
    following = dict_trie(index, ids)
    level = data.draw(st.integers(0, 4))
    some = st.one_of(st.integers(0, vocabulary - 1), st.sampled_from([int(t) for level_ids in ids for t in level_ids]))
    rows = data.draw(st.lists(st.lists(some, min_size=level, max_size=level), min_size=1, max_size=4))
    rows += [list(prefix) for prefix in following if len(prefix) == level]
    tokens = torch.tensor([[7, 7, *row] for row in rows], dtype=torch.int64)
    scores = torch.randn(len(rows), vocabulary, generator=torch.Generator().manual_seed(0))
    masked = TrieLogitsProcessor(ItemTrie.from_index(index), ids, 2, END_ID, pad)(tokens, scores)
    for row, before, after in zip(rows, scores, masked, strict=True):
        allowed = following.get(tuple(row), [pad])
        expected = torch.full_like(before, -torch.inf)
        expected[allowed] = before[allowed]
        assert torch.equal(after, expected)
