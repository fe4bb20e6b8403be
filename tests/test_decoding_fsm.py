"""The rankable machine against a literal reference: one user, one state, one token at a time, in plain Python."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import ROOT, make_histories
from decoding_reference import (
    END_ID,
    Bag,
    dict_trie,
    next_logits_of,
    random_index,
    random_prompt,
    token_ids,
    vocabulary_size,
)  # fmt: skip
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_bench.methods.decoding import beam, fsm
from genrec_bench.methods.decoding.beam import beam_search
from genrec_bench.methods.decoding.fsm import Logits, Probabilities, RankableFSM
from genrec_bench.methods.decoding.ranking import decode, decode_each, rank_items
from genrec_bench.methods.decoding.tokens import Prompt
from genrec_bench.methods.decoding.trie import ItemTrie
from genrec_bench.methods.indexing.index import ItemIndex, level_tokens

ROWS = 3


@dataclass
class Reference:
    """AGRec's decoding for one user, as the paper (section 4) and the released code have it, one beam at a time."""

    index: ItemIndex
    ids: list[torch.Tensor]
    suggested: dict[int, float]  # item -> score
    alpha: float
    aggregation: str = "max"
    temperature: float | None = None

    def path(self, item: int) -> tuple[int, ...]:
        code = [c for c in self.index.codes[item].tolist() if c >= 0]
        ended = [END_ID] if len(code) < self.index.num_levels else []
        return (*(int(self.ids[level][c]) for level, c in enumerate(code)), *ended)

    def heat(self) -> float:
        if self.temperature is not None:
            return self.temperature
        return float(np.std(list(self.suggested.values()))) or 1.0

    def paper(self, model, prompt: list[int], prefix: tuple[int, ...], allowed: list[int]) -> dict[int, float]:
        """log p_hat of the allowed tokens after ``prefix``: equation 4."""
        logits = next_logits_of(model, prompt, list(prefix))[allowed].double()
        p_lm = dict(zip(allowed, logits.softmax(0).tolist(), strict=True))
        behind: dict[int, list[float]] = {}
        for item, score in self.suggested.items():
            path = self.path(item)
            if path[: len(prefix)] == prefix:
                behind.setdefault(path[len(prefix)], []).append(score / self.heat())
        if not behind:
            return {token: math.log(p) for token, p in p_lm.items()}
        top = max(max(scores) for scores in behind.values())
        mass = {
            token: max(math.exp(s - top) for s in scores)
            if self.aggregation == "max"
            else sum(math.exp(s - top) for s in scores)
            for token, scores in behind.items()
        }
        p_graph = {token: mass[token] / sum(mass.values()) if token in mass else fsm.UNAVAILABLE for token in allowed}
        total = sum(p_graph.values())
        mixed = {token: (1 - self.alpha) * p_lm[token] + self.alpha * p_graph[token] / total for token in allowed}
        return {token: math.log(p) if p > 0 else -math.inf for token, p in mixed.items()}

    def official(self, model, prompt: list[int], prefix: tuple[int, ...], allowed: list[int]) -> dict[int, float]:
        """The released code: raw scores into raw logits, a state is the last token, softmax over the vocabulary."""
        logits = next_logits_of(model, prompt, list(prefix)).double()
        following: dict[int, float] = {}
        for item, score in self.suggested.items():
            path = self.path(item)
            for place, token in enumerate(path):
                if (place == 0 and not prefix) or (place and prefix and path[place - 1] == prefix[-1]):
                    following[token] = max(score, following.get(token, -math.inf))
        for token in torch.cat(self.ids).tolist():
            raw = following.get(token, fsm.UNAVAILABLE)
            logits[token] = self.alpha * raw + (1 - self.alpha) * logits[token]
        log_probs = logits.log_softmax(0)
        return {token: float(log_probs[token]) for token in allowed}

    def search(self, step, prompt: list[int], following, width: int, last_length: int) -> list[tuple[tuple, float]]:
        """The best paths of tokens, by a plain beam search with ``step`` for the scores."""
        beams: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
        for _ in range(last_length):
            found = [
                ((*prefix, token), score + log_p)
                for prefix, score in beams
                for token, log_p in step(prompt, prefix, following[prefix]).items()
            ]
            beams = sorted(found, key=lambda pair: -pair[1])[:width]
        return beams


def suggestions(index: ItemIndex, seed: int, count: int) -> tuple[np.ndarray, np.ndarray, list[dict[int, float]]]:
    """Items (ROWS, count), some of them missing, their scores, and both as dictionaries; the last row has none."""
    rng = np.random.default_rng(seed)
    items = np.full((ROWS, count), -1)
    scores = np.zeros((ROWS, count), dtype=np.float32)
    for row in range(ROWS - 1):
        some = rng.permutation(index.num_items)[: rng.integers(1, count + 1)]
        items[row, : len(some)] = some
        scores[row, : len(some)] = np.sort(rng.normal(2.0, 1.5, len(some)).astype(np.float32))[::-1]
    plain = [
        {int(i): float(s) for i, s in zip(*pair, strict=True) if i >= 0} for pair in zip(items, scores, strict=True)
    ]
    return items, scores, plain


def compare(beams, trie, index, reference: list[list[tuple[tuple, float]]], paths) -> None:
    """The same scores in the same order, and the same paths where no other has a score as close."""
    for row, expected in enumerate(reference):
        leaves = [leaf for leaf in beams.leaves[row].tolist() if leaf >= 0]
        scores = beams.scores[row, : len(leaves)].tolist()
        expected = [(path, score) for path, score in expected if score > -math.inf]
        assert len(leaves) == len(expected)
        np.testing.assert_allclose(scores, [score for _, score in expected], atol=2e-4)
        for place, (leaf, (path, score)) in enumerate(zip(leaves, expected, strict=True)):
            near = [abs(other - score) for n, (_, other) in enumerate(expected) if n != place]
            if min(near, default=1.0) > 1e-3:
                assert paths[leaf] == path


cases = st.builds(
    random_index,
    st.integers(0, 10_000),
    st.integers(2, 25),
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.booleans(),
)
alphas = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])


@settings(max_examples=80, deadline=None)
@given(
    cases, st.integers(0, 999), st.sampled_from([1, 3, 10]), alphas, st.sampled_from(["max", "sum"]),
    st.sampled_from([None, 1.0, 0.3]),
)  # fmt: skip
def test_probabilities_are_the_papers(index, seed, count, alpha, aggregation, temperature):
    trie, ids, vocabulary = ItemTrie.from_index(index), token_ids(index), vocabulary_size(index)
    model, prompt = Bag(vocabulary, seed=seed), random_prompt(vocabulary, ROWS, 4, ragged=True, seed=seed)
    items, scores, plain = suggestions(index, seed, count)
    hook = Probabilities(RankableFSM(trie, items, scores), alpha, aggregation, temperature)
    width = trie.num_leaves  # no beam is lost, so that near ties cannot part the two searches
    beams = beam_search(model, prompt, trie, ids, width, end_id=END_ID, normalise="trie", hook=hook)
    following = dict_trie(index, ids)
    for row in range(ROWS):
        real = prompt.tokens[row] if prompt.mask is None else prompt.tokens[row][prompt.mask[row]]
        reference = Reference(index, ids, plain[row], alpha, aggregation, temperature)
        steps = {p: reference.paper(model, real.tolist(), p, allowed) for p, allowed in following.items()}
        for leaf, score in zip(beams.leaves[row].tolist(), beams.scores[row].tolist(), strict=True):
            if leaf < 0:
                continue
            path = reference.path(int(trie.items[trie.starts[-1][leaf]]))
            expected = sum(steps[path[:place]][token] for place, token in enumerate(path))
            assert score == pytest.approx(expected, abs=2e-4, rel=1e-4)
        found = beams.scores[row][beams.scores[row] > -torch.inf].tolist()
        assert found == sorted(found, reverse=True)
        if 0 < alpha < 1:
            assert len(found) == trie.num_leaves


@settings(max_examples=60, deadline=None)
@given(cases.filter(lambda index: not index.variable), st.integers(0, 999), st.sampled_from([1, 3, 10]), alphas,
       st.sampled_from([1, 3, 8]))  # fmt: skip
def test_logits_are_the_released_codes(index, seed, count, alpha, width):
    trie, ids, vocabulary = ItemTrie.from_index(index), token_ids(index), vocabulary_size(index)
    model, prompt = Bag(vocabulary, seed=seed), random_prompt(vocabulary, ROWS, 4, ragged=True, seed=seed)
    items, scores, plain = suggestions(index, seed, count)
    hook = Logits(RankableFSM(trie, items, scores), alpha, ids)
    width = trie.num_leaves if alpha == 1.0 else width  # all that is not offered is tied: no search prefers one
    beams = beam_search(model, prompt, trie, ids, width, normalise="level", hook=hook)
    following = dict_trie(index, ids)
    lists = []
    for row in range(ROWS):
        real = prompt.tokens[row] if prompt.mask is None else prompt.tokens[row][prompt.mask[row]]
        reference = Reference(index, ids, plain[row], alpha)

        def step(asked, prefix, allowed, reference=reference):
            return reference.official(model, asked, prefix, allowed)

        lists.append(reference.search(step, real.tolist(), following, width, index.num_levels))
    some_item = Reference(index, ids, {}, alpha)
    paths = {leaf: some_item.path(int(trie.items[trie.starts[-1][leaf]])) for leaf in range(trie.num_leaves)}
    compare(beams, trie, index, lists, paths)


@settings(max_examples=40, deadline=None)
@given(cases, st.integers(0, 999), st.sampled_from([0.3, 0.9]), st.sampled_from([1, 2, 6]))
def test_a_narrow_beam_is_the_papers_search(index, seed, alpha, width):
    if index.variable:
        return
    trie, ids, vocabulary = ItemTrie.from_index(index), token_ids(index), vocabulary_size(index)
    model, prompt = Bag(vocabulary, seed=seed), random_prompt(vocabulary, ROWS, 4, ragged=True, seed=seed)
    items, scores, plain = suggestions(index, seed, 4)
    hook = Probabilities(RankableFSM(trie, items, scores), alpha)
    beams = beam_search(model, prompt, trie, ids, width, normalise="trie", hook=hook)
    following, lists = dict_trie(index, ids), []
    for row in range(ROWS):
        real = prompt.tokens[row] if prompt.mask is None else prompt.tokens[row][prompt.mask[row]]
        reference = Reference(index, ids, plain[row], alpha)

        def step(asked, prefix, allowed, reference=reference):
            return reference.paper(model, asked, prefix, allowed)

        lists.append(reference.search(step, real.tolist(), following, width, index.num_levels))
    some_item = Reference(index, ids, {}, alpha)
    paths = {leaf: some_item.path(int(trie.items[trie.starts[-1][leaf]])) for leaf in range(trie.num_leaves)}
    compare(beams, trie, index, lists, paths)


def test_alpha_zero_is_the_model_alone():
    index = random_index(3, 40, [4, 5, 3])
    trie, ids, vocabulary = ItemTrie.from_index(index), token_ids(index), vocabulary_size(index)
    model, prompt = Bag(vocabulary), random_prompt(vocabulary, ROWS, 5, ragged=True)
    items, scores, _ = suggestions(index, 0, 6)
    plain = beam_search(model, prompt, trie, ids, 8, normalise="trie")
    mixed = beam_search(
        model, prompt, trie, ids, 8, normalise="trie", hook=Probabilities(RankableFSM(trie, items, scores), 0.0)
    )
    assert torch.equal(plain.leaves, mixed.leaves)
    torch.testing.assert_close(plain.scores, mixed.scores)


def test_alpha_one_with_shares_is_the_graphs_ranking():
    """Shares telescope along a path: the product is the item's own share, whatever codes it has."""
    index = ItemIndex(
        np.array([[a, b, c] for a in range(3) for b in range(3) for c in range(3)]), level_tokens([3] * 3)
    )
    trie, ids, vocabulary = ItemTrie.from_index(index), token_ids(index), vocabulary_size(index)
    model, prompt = Bag(vocabulary), random_prompt(vocabulary, 8, 5, ragged=True)
    rng = np.random.default_rng(0)
    items = np.stack([rng.permutation(27)[:10] for _ in range(8)])
    scores = -np.arange(10, dtype=np.float32)[None].repeat(8, 0)
    hook = Probabilities(RankableFSM(trie, items, scores), 1.0, "sum")
    found, _ = rank_items(beam_search(model, prompt, trie, ids, 27, normalise="trie", hook=hook), trie, 10)
    assert (found.numpy() == items).all()


def test_the_best_suggestion_of_a_collision_counts_and_all_items_of_the_code_are_found():
    index = ItemIndex(np.array([[0, 0], [0, 0], [1, 0], [1, 1]]), level_tokens([2, 2]))
    trie, ids, vocabulary = ItemTrie.from_index(index), token_ids(index), vocabulary_size(index)
    model, prompt = Bag(vocabulary), random_prompt(vocabulary, 1, 5, ragged=False)
    machine = RankableFSM(trie, np.array([[1, 0, 3]]), np.array([[5.0, 1.0, 0.0]], dtype=np.float32))
    beams = beam_search(model, prompt, trie, ids, 4, normalise="trie", hook=Probabilities(machine, 1.0, "max", 1.0))
    found, scores = rank_items(beams, trie, 2)
    assert found[0].tolist() == [0, 1]
    assert math.exp(scores[0, 0]) == pytest.approx(1 / (1 + math.exp(-5)), rel=1e-4)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), variable=st.booleans(), excluding=st.booleans(), width=st.integers(1, 9))
def test_searches_side_by_side_find_what_each_finds_alone(seed, variable, excluding, width):
    rng = np.random.default_rng(seed)
    index = random_index(seed, 60, rng.integers(2, 6, 3).tolist(), variable=variable)
    trie, ids, vocabulary = ItemTrie.from_index(index), token_ids(index), vocabulary_size(index)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 9, 11))])
    tokens = rng.integers(5, vocabulary, offsets[-1])
    count = len(index.codes)
    items = np.stack([rng.permutation(count)[:5] for _ in range(11)])
    machine = RankableFSM(trie, items, rng.normal(size=items.shape).astype(np.float32))
    hooks = [None, Probabilities(machine, 0.2), Probabilities(machine, 0.8, "sum"), None]
    read: list[int] = []
    computed: list[tuple[int, int]] = []

    class Counting(Bag):
        def start(self, prompt, room):
            read.append(len(prompt.tokens))
            return super().start(prompt, room)

        def extend(self, state, tokens, depth, visible):
            computed.append((len(read), tokens.shape[1]))
            return super().extend(state, tokens, depth, visible)

    seen = make_histories([rng.permutation(count)[:9].tolist() for _ in range(11)])
    options = {"width": width, "end_id": END_ID, "normalise": "trie", "token_budget": 200}
    options["exclude"] = seen if excluding else None
    together = decode_each(Counting(vocabulary), offsets, tokens, trie, ids, 8, hooks, **options)
    assert sum(read) == 11
    firsts = dict(reversed(computed))  # the columns of each batch's first level
    assert max(firsts.values(), default=0) <= trie.level_sizes[0]  # no search has a first code of its own
    for hook, (found, found_scores) in zip(hooks, together, strict=True):
        alone, alone_scores = decode(Bag(vocabulary), offsets, tokens, trie, ids, 8, hook=hook, **options)
        assert np.array_equal(found, alone)
        np.testing.assert_allclose(found_scores, alone_scores, rtol=1e-5, atol=1e-6)


def test_a_step_shows_the_hook_what_its_logits_are_made_of():
    index = random_index(1, 20, [3, 4])
    trie, ids, vocabulary = ItemTrie.from_index(index), token_ids(index), vocabulary_size(index)
    seen: list[beam.StepView] = []

    def hook(step):
        seen.append(step)
        return step.log_probs

    beam_search(Bag(vocabulary), random_prompt(vocabulary, 2, 4, ragged=False), trie, ids, 3, hook=hook)
    for step in seen:
        of_level = step.model.logits(step.hidden, ids[step.level])
        torch.testing.assert_close(of_level.gather(-1, step.codes)[step.real], step.logits[step.real])


class Table:
    """A `TokenModel` of five tokens (a0, a1, b0, b1, a word) with the logits of docs/methods/agrec.md."""

    vocabulary_size = 5
    first = (1.0, 0.6, -4, -4, -4)
    after = ((-4, -4, 0.5, 0.5, -4), (-4, -4, 2.2, 0, -4))

    def start(self, prompt, room):
        return torch.tensor([self.first]), None

    def extend(self, state, tokens, depth, visible):
        return torch.tensor([[self.after[token] for token in tokens[0].tolist()]])

    def rewind(self, state): ...

    def logits(self, hidden, tokens):
        return hidden if tokens is None else hidden[..., tokens]


def test_the_worked_example_of_the_docs():
    page = (ROOT / "docs" / "methods" / "agrec.md").read_text()
    index = ItemIndex(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), level_tokens([2, 2]))
    ids, prompt = [torch.tensor([0, 1]), torch.tensor([2, 3])], Prompt(torch.zeros(1, 1, dtype=torch.int64))
    suggested = np.array([[3, 1]]), np.array([[2.0, 1.0]])

    def answer(hook, normalise):
        trie = ItemTrie.from_index(index)
        beams = beam_search(Table(), prompt, trie, ids, 4, normalise=normalise, hook=hook and hook(trie))
        items, scores = (found[0].tolist() for found in rank_items(beams, trie, 4))
        return [("ABCD"[item], f"{math.exp(score):.3f}") for item, score in zip(items, scores, strict=True)]

    alone = answer(None, "trie")
    assert alone == [("C", "0.361"), ("A", "0.299"), ("B", "0.299"), ("D", "0.040")]
    assert "it ranks C (0.361), A and B (0.299 each), D (0.040)" in page
    paper = answer(lambda trie: Probabilities(RankableFSM(trie, *suggested), 0.5), "trie")
    official = answer(lambda trie: Logits(RankableFSM(trie, *suggested), 0.5, ids), "level")
    text = " ".join(page.split())
    for found in (paper, official):
        assert ", ".join(f"{item} ({score})" for item, score in found) in text
    assert paper[0][0] == "D"
    assert official[0][0] == "C"
