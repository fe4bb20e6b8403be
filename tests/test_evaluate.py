"""From answers to ranks: validation equals evaluation, and every broken promise is named."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_histories
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_bench.benchmark import evaluate as module
from genrec_bench.benchmark.evaluate import Kept, MethodFault, check_choice, evaluate, picked_ranks, validation_ranks
from genrec_bench.benchmark.protocols import Cand20, Full, protocol, selection_value
from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.splits import HeldOut
from genrec_bench.methods.base import Choice, Method, Ranking
from genrec_bench.methods.scoring import Scorer


class Table(Scorer):
    """Fixed scores a user."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def score(self, histories):
        return self.table[histories.users]

    fit = save = load = None  # type: ignore[assignment]


class Says(Method):
    """Answers with what it was given."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def recommend(self, histories, k):
        return self.answer

    def choose(self, histories, candidates):
        return self.answer

    fit = save = load = None  # type: ignore[assignment]


HELD_OUT = HeldOut(make_histories([[0], [1, 2]], users=[7, 9]), np.array([3, 0]))
GOOD_ITEMS, GOOD_SCORES = [[3, 1, 2], [4, 0, -1]], [[3.0, 2.0, 1.0], [0.5, 0.5, -np.inf]]
RULES, MASKED = Full(max_rank=2), Full(max_rank=2, mask_seen=True)


def answer(items=GOOD_ITEMS, scores=GOOD_SCORES, **changes):
    return Ranking(np.array(items), np.array(scores, dtype=np.float32), **changes)


@settings(max_examples=150)
@given(
    seed=st.integers(0, 10**6), num_items=st.sampled_from([1, 2, 15, 60]), users=st.sampled_from([1, 12]),
    values=st.sampled_from([1, 3, 10**6]), mask_seen=st.booleans(), hidden=st.booleans(),
    max_rank=st.sampled_from([1, 5, 20]), double=st.booleans(),
)  # fmt: skip
def test_validation_ranks_are_the_ranks(seed, num_items, users, values, mask_seen, hidden, max_rank, double):
    """Counting up to the target gives what the full list gives, with ties and -inf all over."""
    rng = np.random.default_rng(seed)
    table = rng.integers(0, values, (users, num_items)) / values
    table[rng.random(table.shape) < 0.3 * hidden] = -np.inf
    if double:
        table += rng.random(table.shape) * 1e-12  # equal once they are float32
    rows = [rng.integers(0, num_items, rng.integers(0, 6)).tolist() for _ in range(users)]
    held_out = HeldOut(make_histories(rows), rng.integers(0, num_items, users))
    rules = Full(mask_seen=mask_seen, max_rank=max_rank)
    method = Table(table if double else table.astype(np.float32))
    method.rows_at_a_time = 5
    ranks = evaluate(method, held_out, rules, num_items).ranks
    assert validation_ranks(method, held_out, rules, num_items).tolist() == ranks.tolist()
    scores = table.astype(np.float32)
    for user, target in enumerate(held_out.targets):
        hide = set(rows[user]) if mask_seen else set()
        mine = [s if i not in hide else -np.inf for i, s in enumerate(scores[user])]
        rank = sum(s >= mine[target] for s in mine)
        assert ranks[user] == (rank if rank <= max_rank and mine[target] > -np.inf else 0)


def test_good_answers_are_ranked():
    answers = evaluate(Says(answer()), HELD_OUT, RULES, 5)
    assert answers.ranks.tolist() == [1, 2]  # user 9: tied with item 4, so second
    ordered = evaluate(Says(answer([[3, 1, 2], [0, 4, -1]], ordered=True)), HELD_OUT, RULES, 5)
    assert ordered.ranks.tolist() == [1, 1]
    assert answers.seconds >= 0


def test_what_is_a_tie_in_the_stored_lists_is_one_in_the_ranks():
    """Stored are float32; 0.1 + 0.2 and 0.3 differ in float64 alone."""
    near = np.array([[0.1 + 0.2, 0.3, 0.0], [0.1 + 0.2, 0.3, -np.inf]])
    answers = evaluate(Says(Ranking(np.array([[3, 1, 2], [0, 4, -1]]), near)), HELD_OUT, RULES, 5)
    assert answers.ranks.tolist() == [2, 2]
    assert answers.ranking.scores.dtype == np.float32
    held_out = replace(HELD_OUT, candidates=np.array([[3, 1, 4], [0, 3, 2]]))
    answers = evaluate(Says(Choice(np.array([0, 0]), near.clip(min=-1))), held_out, Cand20(), 5)
    assert answers.ranks.tolist() == picked_ranks(answers.picks, held_out).tolist() == [2, 2]


class Counts(Table):
    """Says who was asked for, and falls over at the ``last`` asking."""

    def __init__(self, table, last=10**9):
        super().__init__(table)
        self.asked, self.last = [], last

    def _ask(self, users):
        self.asked.append(users.tolist())
        if len(self.asked) == self.last:
            raise KeyboardInterrupt
        return self.table[users]

    def recommend(self, histories, k):
        scores = self._ask(histories.users)
        order = np.argsort(-scores, axis=1)[:, :k]
        return Ranking(order, np.take_along_axis(scores, order, axis=1))

    def choose(self, histories, candidates):
        return Choice(np.zeros(len(candidates), dtype=np.int64), self._ask(histories.users)[:, :3])


@pytest.mark.parametrize("rules", [RULES, Cand20()])
def test_an_interrupted_evaluation_goes_on_where_it_was(rules, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    table, targets = rng.random((7, 9)).astype(np.float32), rng.integers(0, 9, 7)
    others = (targets[:, None] + [[1, 2]] * 7) % 9
    held_out = HeldOut(make_histories([[1]] * 7, users=range(7)), targets, np.c_[targets, others])
    whole = evaluate(Counts(table), held_out, rules, 9)
    monkeypatch.setattr(module, "ROWS_AT_A_TIME", 3)
    monkeypatch.setattr(module, "QUESTIONS_AT_A_TIME", 3)
    kept = Kept(tmp_path / "answers")
    with pytest.raises(KeyboardInterrupt):
        evaluate(Counts(table, last=2), held_out, rules, 9, kept)
    (kept.folder / "3.npz").write_bytes(b"PK, and then the power went")
    method = Counts(table)
    answers = evaluate(method, held_out, rules, 9, kept)
    assert method.asked == [[3, 4, 5], [6]]
    assert answers.ranks.tolist() == whole.ranks.tolist()
    for name in module.LISTS:
        lists, expected = getattr(answers, name), getattr(whole, name)
        assert (lists is None) == (expected is None)
        if lists is not None:
            assert np.array_equal(lists.items, expected.items)
            assert np.array_equal(lists.scores, expected.scores)
            assert lists.ordered == expected.ordered
    again = Counts(table)
    assert evaluate(again, held_out, rules, 9, kept).seconds == answers.seconds  # of those who answered, then
    assert again.asked == []
    evaluate(again, held_out, rules, 9, kept.of("another/state"))
    assert len(again.asked) == 3


def test_one_answer_more_than_is_ranked_is_asked_for():
    asked = []

    class Listens(Says):
        def recommend(self, histories, k):
            asked.append((k, histories.mask_seen, len(histories)))
            return self.answer

    evaluate(Listens(answer()), HELD_OUT, RULES, 5)
    assert asked == [(3, False, 2)]


def faults():
    nan = [[3.0, np.nan, 1.0], [0.5, 0.5, -np.inf]]
    yield "items (2, 2) and scores (2, 2), expected (2, 3)", answer([[3, 1], [4, 0]], [[3, 2], [1, 0]])
    yield "expected (2, 3)", answer(scores=[[3, 2], [1, 0]])
    yield "items of type float64, expected integers", answer([[3.0, 1.0, 2.0], [4.0, 0.0, -1.0]])
    yield "unknown item 5 (items are 0..4) for user 9 (1 of 2 users)", answer([[3, 1, 2], [4, 5, -1]])
    yield "unknown item -2", answer([[3, 1, -2], [4, 0, -1]])
    yield "score NaN for item 1 for user 7 (1 of 2 users)", answer(scores=nan)
    yield "item 0 after a missing answer for user 9", answer([[3, 1, 2], [4, -1, 0]])
    yield "scores that rise along the list at item 1 for user 7", answer(scores=[[2, 3, 1], [0.5, 0.5, 0]])
    yield "item 3 twice for user 7 (2 of 2 users)", answer([[3, 1, 3], [4, 4, -1]])
    yield "recommend returned NoneType, expected a Ranking", None
    yield "recommend returned tuple, expected a Ranking", (GOOD_ITEMS, GOOD_SCORES)
    yield "items as Tensor, expected a numpy array", Ranking(torch.tensor(GOOD_ITEMS), np.array(GOOD_SCORES))
    yield "items as list, expected a numpy array", Ranking(GOOD_ITEMS, GOOD_SCORES)


@pytest.mark.parametrize(("message", "returned"), list(faults()))
def test_broken_rankings_are_named(message, returned):
    with pytest.raises(MethodFault) as fault:
        evaluate(Says(returned), HELD_OUT, RULES, 5)
    assert message in str(fault.value)


def test_seen_items_are_refused_where_the_protocol_masks_them():
    evaluate(Says(answer([[3, 1, 2], [4, 0, 3]], [[3, 2, 1]] * 2)), HELD_OUT, MASKED, 5)
    with pytest.raises(MethodFault, match=r"seen item 2, though the protocol masks seen items, for user 9 \(1 of 2"):
        evaluate(Says(answer([[3, 1, 2], [4, 0, 2]], [[3, 2, 1]] * 2)), HELD_OUT, MASKED, 5)


def test_broken_scores_are_named_in_validation():
    for table, message in (
        (np.zeros((10, 4)), r"shape \(2, 4\), expected \(2, 5\)"),
        (np.where(np.arange(50).reshape(10, 5) == 38, np.nan, 0.0), "NaN during validation"),
    ):
        with pytest.raises(MethodFault, match=message):
            validation_ranks(Table(table), HELD_OUT, RULES, 5)


def test_candidates_by_hand():
    held_out = replace(HELD_OUT, candidates=np.array([[1, 3, 4], [0, 3, 2]]))
    choice = Choice(np.array([1, 2]))
    assert evaluate(Says(choice), held_out, Cand20(), 5).ranks.tolist() == [1, 2]
    assert evaluate(Says(Choice(np.array([-1, 0]))), held_out, Cand20(), 5).ranks.tolist() == [0, 1]
    scored = Choice(np.array([1, 0]), np.array([[1.0, 2.0, 3.0], [1.0, 1.0, 0.0]]))
    assert evaluate(Says(scored), held_out, Cand20(), 5).ranks.tolist() == [2, 2]  # tied targets lose
    table = np.zeros((10, 5), np.float32)
    table[7, 3], table[9, 2] = 1.0, 1.0
    assert validation_ranks(Table(table), held_out, Cand20(), 5).tolist() == [1, 3]


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([[1, 3, 4], [0, 2, 2]], r"row 1 \(user \d+\) hold an item twice: \[0, 2, 2\]"),
        ([[1, 0, 4], [0, 3, 2]], r"row 0 \(user \d+\) lack the target: \[1, 0, 4\], target 3"),
    ],
)
def test_candidates_that_cannot_be_asked_are_refused(candidates, message):
    held_out = replace(HELD_OUT, candidates=np.array(candidates))
    with pytest.raises(InputError, match=message):
        evaluate(Says(Choice(np.array([0, 0]))), held_out, Cand20(), 5)


def test_a_method_cannot_change_the_candidates():
    held_out = replace(HELD_OUT, candidates=np.array([[1, 3, 4], [0, 3, 2]]))

    class Rewrites(Says):
        def choose(self, histories, candidates):
            candidates[:] = 3
            return self.answer

    assert evaluate(Rewrites(Choice(np.array([0, 0]))), held_out, Cand20(), 5).ranks.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("message", "choice"),
    [
        (r"picks of shape \(1,\), expected \(2,\)", Choice(np.array([1]))),
        ("picks of type float64, expected integers", Choice(np.array([1.0, 0.0]))),
        (r"a pick outside -1\.\.2", Choice(np.array([1, 3]))),
        (r"a pick outside -1\.\.2", Choice(np.array([-2, 0]))),
        (r"scores \(2, 2\), expected \(2, 3\)", Choice(np.array([1, 0]), np.zeros((2, 2)))),
        ("NaN scores", Choice(np.array([1, 0]), np.array([[0, np.nan, 0], [0, 0, 0]]))),
        ("returned int, expected a Choice", 1),
    ],
)
def test_broken_choices_are_named(message, choice):
    with pytest.raises(MethodFault, match=message):
        check_choice(choice, np.array([[1, 3, 4], [0, 3, 2]]))


def test_protocols():
    assert protocol("full", mask_seen=True).mask_seen
    assert protocol("full").hash != protocol("full", mask_seen=True).hash != protocol("cand20").hash
    assert selection_value(protocol("full"), np.array([1, 0, 3, 11])) == pytest.approx((1 + 0.5) / 4)
    assert selection_value(protocol("cand20"), np.array([1, 0, 3, 1])) == 0.5
    with pytest.raises(InputError, match="Did you mean: full"):
        protocol("ful")
