"""The search against brute force on a plain-torch model: normalisation, restrictions, hooks, ties, ranked items."""

import numpy as np
import pytest
import torch
from conftest import make_histories
from decoding_reference import (
    END_ID,
    Bag,
    brute_force,
    exact_lists,
    random_index,
    random_prompt,
    token_ids,
    vocabulary_size,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_bench.methods.decoding import tokens
from genrec_bench.methods.decoding.beam import beam_search, best_first
from genrec_bench.methods.decoding.ranking import batches, decode, rank_items
from genrec_bench.methods.decoding.restriction import restrict
from genrec_bench.methods.decoding.trie import ItemTrie
from genrec_bench.methods.indexing.index import ItemIndex, level_tokens

ROWS = 3
cases = st.builds(
    random_index,
    seed=st.integers(0, 10_000),
    items=st.integers(1, 40),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    variable=st.booleans(),
)
normalisations = st.sampled_from(["vocabulary", "level", "trie"])


def assert_lists(found, scores: torch.Tensor, expected: list[list[int]]) -> None:
    """Found items and scores are the expected ones, up to swaps of scores that differ by rounding."""
    items, found_scores = found
    for row, wanted in enumerate(expected):
        got = items[row][items[row] >= 0].tolist()
        assert len(set(got)) == len(got) == len(wanted)
        torch.testing.assert_close(scores[row, got], found_scores[row, : len(got)], atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(scores[row, got], scores[row, wanted], atol=1e-4, rtol=1e-5)
        assert (found_scores[row, len(got) :] == -torch.inf).all()


def search(index, trie, width, k, normalise, seed=0, **options):
    """Ranked items and the brute-force scores of the same prompts."""
    ids, vocabulary = token_ids(index, seed), vocabulary_size(index)
    model, prompt = Bag(vocabulary, seed=seed), random_prompt(vocabulary, ROWS, 5, ragged=True, seed=seed)
    beams = beam_search(model, prompt, trie, ids, width, end_id=END_ID, normalise=normalise, **options)
    return rank_items(beams, trie, k), brute_force(model, prompt, index, ids, normalise)


@settings(max_examples=40)
@given(cases, normalisations, st.integers(0, 100))
def test_a_wide_beam_is_the_exact_ranking(index, normalise, seed):
    trie = ItemTrie.from_index(index)
    found, scores = search(index, trie, index.num_items, 15, normalise, seed)
    assert_lists(found, scores, exact_lists(scores, index, 15))


@settings(max_examples=60)
@given(cases, normalisations, st.booleans(), st.data())
def test_a_restriction_filters_the_exact_ranking(index, normalise, with_allowed, data):
    items = st.lists(st.integers(0, index.num_items - 1), max_size=index.num_items)
    excluded = data.draw(st.lists(items, min_size=ROWS, max_size=ROWS))
    allowed = data.draw(st.lists(items, min_size=ROWS, max_size=ROWS)) if with_allowed else None
    order = np.array(data.draw(st.lists(st.integers(0, 2), min_size=index.num_items, max_size=index.num_items)))
    trie = ItemTrie.from_index(index, order)
    restriction = restrict(trie, make_histories(excluded), None if allowed is None else make_histories(allowed))
    found, scores = search(index, trie, index.num_items, 12, normalise, restriction=restriction)
    everything = [range(index.num_items)] * ROWS if allowed is None else allowed
    left = [set(row) - set(out) for row, out in zip(everything, excluded, strict=True)]
    assert_lists(found, scores, exact_lists(scores, index, 12, order, left))


def test_excluding_whole_subtrees_costs_no_beams():
    """The best two first codes hold seen items only; a beam of two must go to the others at once."""
    index = ItemIndex(np.array([[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1], [3, 1]]), level_tokens([4, 2]))
    trie, ids, vocabulary = ItemTrie.from_index(index), token_ids(index), vocabulary_size(index)
    model, prompt = Bag(vocabulary), random_prompt(vocabulary, 1, 4, ragged=False)
    scores = brute_force(model, prompt, index, ids, "trie")[0]
    hidden, _ = model.start(prompt, 0)
    first = model.logits(hidden, ids[0])[0]
    dead = first.topk(2).indices.tolist()
    seen = np.flatnonzero(np.isin(index.codes[:, 0], dead)).tolist()
    restriction = restrict(trie, make_histories([seen]))
    items, _ = rank_items(beam_search(model, prompt, trie, ids, 2, restriction=restriction, normalise="trie"), trie, 3)
    left = sorted(set(range(7)) - set(seen), key=lambda item: -scores[item])
    assert items[0].tolist() == [*left[:2], -1]


@pytest.mark.parametrize("wide", [0, 3])
@pytest.mark.parametrize("sizes", [[3, 3], [5, 4, 6]])
def test_logits_of_the_candidates_alone_change_nothing(sizes, wide, monkeypatch):
    index = random_index(1, 8, sizes)
    trie = ItemTrie.from_index(index)
    seen = restrict(trie, make_histories([range(8), *([[0, 3]] * (ROWS - 1))]))
    (items, scores), _ = search(index, trie, 4, 5, "trie", restriction=seen)
    monkeypatch.setattr(tokens, "WIDE_LEVEL", wide)
    (again, other_scores), _ = search(index, trie, 4, 5, "trie", restriction=seen)
    assert np.array_equal(items, again)
    np.testing.assert_allclose(scores, other_scores, rtol=1e-6)


def test_every_item_seen_gives_nothing():
    index = random_index(0, 10, [3, 3])
    trie = ItemTrie.from_index(index)
    (items, scores), _ = search(
        index, trie, 4, 5, "trie", restriction=restrict(trie, make_histories([range(10)] * ROWS))
    )
    assert (items == -1).all()
    assert (scores == -torch.inf).all()


def test_a_code_shared_by_items_gives_each_a_rank():
    index = ItemIndex(np.array([[0, 1], [0, 1], [0, 0], [0, 1]]), level_tokens([1, 2]))
    trie = ItemTrie.from_index(index, order=np.array([5, 9, 0, 1]))
    (items, scores), exact = search(
        index, trie, 1, 4, "trie", restriction=restrict(trie, make_histories([[], [3], [0]]))
    )
    expected = [[3, 0, 1], [0, 1], [3, 1]]
    for row, group in enumerate(expected):
        best = group if exact[row, 0] > exact[row, 2] else [2]
        assert items[row].tolist() == best + [-1] * (4 - len(best))
        assert (scores[row, : len(best)] == scores[row, 0]).all()


@settings(max_examples=30)
@given(cases, normalisations, st.floats(0.05, 0.95))
def test_a_hook_mixes_as_brute_force_does(index, normalise, share):
    """log((1 - a) p_model + a p_graph), as AGRec mixes; p_graph from any table over rows, prefixes and codes."""
    trie, ids, vocabulary = ItemTrie.from_index(index), token_ids(index), vocabulary_size(index)
    model, prompt = Bag(vocabulary), random_prompt(vocabulary, ROWS, 5, ragged=True)
    numbers = torch.tensor([7, 3, 5])  # the caller's row numbers
    weights = torch.rand(8, 11, 8, generator=torch.Generator().manual_seed(1))

    def graph(row, prefix_sum, code):
        return weights[row, prefix_sum % 11, code]  # code -1 (END) is the last column

    def hook(step):
        assert step.level == step.prefix.shape[-1]
        rows = step.rows[:, None, None].expand_as(step.codes)
        prefix = step.prefix.sum(-1)[..., None].expand_as(step.codes)
        other = graph(rows, prefix, step.codes).masked_fill(~step.real, 0)
        other = other / other.sum(-1, keepdim=True).clamp(min=1e-9)
        return torch.log((1 - share) * step.log_probs.exp() + share * other)

    code_of = {int(token): code for level in ids for code, token in enumerate(level)} | {END_ID: -1}

    def mix(row, prefix, tokens, log_probs):
        other = torch.stack([graph(numbers[row], sum(prefix), code_of[token]) for token in tokens])
        return torch.log((1 - share) * log_probs.exp() + share * other / other.sum())

    beams = beam_search(
        model, prompt, trie, ids, index.num_items, end_id=END_ID, normalise=normalise, hook=hook, rows=numbers
    )
    scores = brute_force(model, prompt, index, ids, normalise, mix)
    assert_lists(rank_items(beams, trie, 10), scores, exact_lists(scores, index, 10))


@settings(max_examples=100)
@given(st.data(), st.integers(1, 9), st.integers(1, 9))
def test_best_first_orders_by_score_then_number(data, size, count):
    values = st.sampled_from([-float("inf"), -1e9, -2.5, -1.0, 0.0, 1e-30, 3.0])
    scores = data.draw(st.lists(values, min_size=size, max_size=size))
    numbers = data.draw(st.permutations(range(size)))
    found = best_first(torch.tensor([scores]), torch.tensor([numbers]), count)[0].tolist()
    assert found == sorted(range(size), key=lambda i: (-scores[i], numbers[i]))[:count]


@pytest.mark.parametrize("variable", [False, True])
def test_equal_scores_come_in_code_order(variable):
    index = random_index(4, 40, [3, 4, 3], variable)
    trie, ids, vocabulary = ItemTrie.from_index(index), token_ids(index), vocabulary_size(index)
    model, prompt = Bag(vocabulary), random_prompt(vocabulary, 2, 4, ragged=False)
    flat = beam_search(
        model, prompt, trie, ids, 6, end_id=END_ID, hook=lambda step: torch.where(step.real, 0.0, -torch.inf)
    )
    leaves = flat.leaves[0].tolist()
    assert (flat.scores == 0).all()
    assert leaves == sorted(leaves)


def test_decode_restores_the_order_and_ignores_the_batches():
    index = random_index(2, 60, [4, 5, 4], variable=True)
    trie, ids, vocabulary = ItemTrie.from_index(index), token_ids(index), vocabulary_size(index)
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 9, 23))])
    tokens = rng.integers(5, vocabulary, offsets[-1])
    seen = make_histories([rng.integers(0, 60, 4).tolist() for _ in range(23)])
    rows_seen: list[int] = []

    def hook(step):
        rows_seen.extend(step.rows.tolist() if not step.level else [])
        return step.log_probs - 0.01 * (step.rows % 3)[:, None, None] * step.codes

    def run(budget):
        return decode(
            Bag(vocabulary), offsets, tokens, trie, ids, 8, width=8, end_id=END_ID, exclude=seen, hook=hook,
            token_budget=budget,
        )  # fmt: skip

    items, scores = run(1)
    assert sorted(rows_seen) == list(range(23))
    for budget in (60, 10_000):
        again, again_scores = run(budget)
        assert np.array_equal(items, again)
        np.testing.assert_allclose(scores, again_scores, atol=1e-5)
    for row, history in enumerate(seen.row(b) for b in range(23)):
        assert not set(items[row].tolist()) & set(history.tolist())
    with pytest.raises(ValueError, match="Prompt 1 is empty"):
        decode(Bag(vocabulary), np.array([0, 2, 2]), tokens, trie, ids, 8, end_id=END_ID)
    with pytest.raises(ValueError, match="23 rows of excluded or allowed items for 22 prompts"):
        decode(Bag(vocabulary), offsets[:-1], tokens, trie, ids, 8, end_id=END_ID, exclude=seen)


def test_decode_halves_a_batch_that_does_not_fit():
    index = random_index(2, 30, [4, 5])
    trie, ids, vocabulary = ItemTrie.from_index(index), token_ids(index), vocabulary_size(index)

    class Small(Bag):
        limit = 6

        def start(self, prompt, room):
            if len(prompt.tokens) > self.limit:
                raise torch.OutOfMemoryError("no room")
            return super().start(prompt, room)

    offsets, tokens = np.arange(0, 41, 4), np.random.default_rng(0).integers(5, vocabulary, 40)
    expected = decode(Bag(vocabulary), offsets, tokens, trie, ids, 5)
    model = Small(vocabulary)
    found = decode(model, offsets, tokens, trie, ids, 5)
    assert np.array_equal(found[0], expected[0])
    model.limit = 2
    with pytest.raises(torch.OutOfMemoryError):
        decode(model, offsets, tokens, trie, ids, 5)


def test_batches_keep_the_budget():
    lengths = np.random.default_rng(0).integers(1, 200, 500)
    groups = list(batches(lengths, 60, 4000))
    assert sorted(np.concatenate(groups).tolist()) == list(range(500))
    assert all(len(rows) * (lengths[rows].max() + 60) <= 4000 for rows in groups)


def test_wrong_tokens_are_refused():
    index = random_index(0, 9, [3, 3], variable=True)
    trie, ids, vocabulary = ItemTrie.from_index(index), token_ids(index), vocabulary_size(index)
    model, prompt = Bag(vocabulary), random_prompt(vocabulary, 1, 3, ragged=False)
    with pytest.raises(ValueError, match="levels hold"):
        beam_search(model, prompt, trie, ids[:1], end_id=END_ID)
    with pytest.raises(ValueError, match="end_id"):
        beam_search(model, prompt, trie, ids)
