"""Ragged sequences, packed rows and prompt-answer pairs: by hand, and that packing changes nothing a model sees."""

from itertools import chain

import numpy as np
import pytest
import torch
from conftest import make_histories
from hypothesis import given
from hypothesis import strategies as st

from genrec_bench.methods.indexing.index import ItemIndex, level_tokens
from genrec_bench.methods.language.batches import pack, packed_batches, padded_batches, pair_batches
from genrec_bench.methods.language.codes import ItemTokens, thinned, training_prefixes, training_windows
from genrec_bench.methods.language.sequences import ASIDE, GIVEN, TEXT, TokenSequences, join, stack

PAD, END = 0, 2


def lists(sequences: TokenSequences) -> list[list[int]]:
    return [sequences.tokens[a:b].tolist() for a, b in zip(sequences.offsets[:-1], sequences.offsets[1:], strict=True)]


def levels(sequences: TokenSequences) -> list[list[int]]:
    return lists(TokenSequences(sequences.offsets, sequences.levels, sequences.levels))


RAGGED = st.lists(st.lists(st.integers(1, 99), max_size=6), min_size=1, max_size=8)


@given(RAGGED, st.data())
def test_select_join_stack_cut_and_group_are_what_they_are_for_lists(rows, data):
    sequences = TokenSequences.of(rows)
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=10))
    assert lists(sequences.select(np.array(chosen, dtype=np.int64))) == [rows[i] for i in chosen]
    other = TokenSequences.of([[7] * i for i in range(len(rows))], TEXT)
    joined = join(sequences, other)
    assert lists(joined) == [row + [7] * i for i, row in enumerate(rows)]
    assert levels(joined) == [[GIVEN] * len(row) + [TEXT] * i for i, row in enumerate(rows)]
    assert lists(stack(sequences, other)) == rows + [[7] * i for i in range(len(rows))]
    assert lists(sequences.cut(2)) == [row[:2] for row in rows]
    cut = data.draw(st.integers(0, len(rows)))
    assert lists(sequences.grouped(np.array([0, cut, len(rows)]))) == [
        list(chain(*rows[:cut])),
        list(chain(*rows[cut:])),
    ]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=40))
def test_every_sequence_is_packed_once_and_no_row_is_too_long(lengths):
    rows = pack(np.array(lengths), 12, np.random.default_rng(0))
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 12 for row in rows)
    assert len(rows) <= max(2 * sum(lengths) // 12 + 1, 1)  # any two rows of best fit hold more than one row's worth


def test_packed_rows_by_hand():
    sequences = TokenSequences(
        np.array([0, 3, 5]), np.array([1, 5, 6, 1, 9], np.int32), np.array([-2, 0, 1, -2, -1], np.int8)
    )
    (batch,) = packed_batches(sequences, 5, 100, PAD, np.random.default_rng(0))
    assert batch.tokens.tolist() == [[1, 5, 6, 1, 9]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.segments.tolist() == [[1, 1, 1, 2, 2]]
    assert batch.at.tolist() == [0, 1, 3]  # what predicts 5, 6 and 9
    assert (batch.targets.tolist(), batch.levels.tolist()) == ([5, 6, 9], [0, 1, -1])
    visible = batch.visible()[0, 0].int().tolist()
    assert visible == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]


def test_a_part_of_a_batch_has_its_own_targets():
    sequences = TokenSequences.of([[1, 5], [1, 6], [1, 7]], TEXT)
    (batch,) = packed_batches(sequences, 2, 100, PAD, np.random.default_rng(0))
    parts = [batch.part(0, 1), batch.part(1, 3)]
    assert [len(part) for part in parts] == [1, 2]
    assert torch.cat([part.targets for part in parts]).tolist() == batch.targets.tolist()
    assert parts[1].at.tolist() == [0, 2]


def test_packing_shows_a_model_what_padding_shows_it():
    """Hidden states of packed sequences equal those of each alone in its row."""
    pytest.importorskip("transformers")
    from genrec_bench.methods.language.backbone import tiny_llama
    from genrec_bench.methods.language.codes import packed_states

    model = tiny_llama(30, layers=2, dim=16, heads=2, feedforward=32)
    rng = np.random.default_rng(1)
    sequences = TokenSequences.of([rng.integers(3, 30, size).tolist() for size in (4, 7, 2, 5, 9, 3)], TEXT)

    def states(batches):
        found = {}
        with torch.no_grad():
            for batch in batches:
                for target, at, state in zip(
                    batch.targets, batch.at, packed_states(model, batch)[batch.at], strict=True
                ):
                    row = batch.tokens.flatten()[: at + 1].tolist()
                    start = at - int(batch.positions.flatten()[at])
                    found[(tuple(row[start:]), int(target))] = state
        return found

    packed = states(packed_batches(sequences, 12, 24, PAD, np.random.default_rng(0)))
    alone = states(padded_batches(sequences, 12, PAD, np.random.default_rng(0)))
    assert packed.keys() == alone.keys()
    assert len(packed) == sum(sequences.lengths - 1)
    assert all(torch.allclose(packed[key], alone[key], atol=1e-5) for key in packed)


def asides_between() -> TokenSequences:
    """Two rows: 1 5 [6] (aside of item 3) [7] (aside of item 0), and 1 [9]; what is learned in brackets."""
    tokens = np.array([1, 5, 6, 3, 7, 0, 1, 9], np.int32)
    levels = np.array([GIVEN, GIVEN, 0, ASIDE, 0, ASIDE, GIVEN, TEXT], np.int8)
    return TokenSequences(np.array([0, 6, 8]), tokens, levels)


def test_asides_by_hand():
    """They see what stands before them, nobody sees them, and they take no position."""
    (batch,) = packed_batches(asides_between(), 8, 100, PAD, np.random.default_rng(0))
    assert batch.tokens.tolist() == [[1, 5, 6, PAD, 7, PAD, 1, 9]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 3, 4, 0, 1]]
    assert (batch.at.tolist(), batch.targets.tolist(), batch.levels.tolist()) == ([1, 2, 6], [6, 7, 9], [0, 0, TEXT])
    assert (batch.asides.at.tolist(), batch.asides.items.tolist(), batch.asides.targets) == ([3, 5], [3, 0], 3)
    assert batch.visible()[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 1, 0, 0, 0],
        [1, 1, 1, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 1, 1],
    ]


def test_a_part_keeps_the_pool_of_the_batch():
    batch = next(packed_batches(asides_between(), 6, 100, PAD, np.random.default_rng(0)))
    with_asides = 0 if batch.segments[0].max() == 1 and batch.tokens[0, 1] == 5 else 1
    part = batch.part(with_asides, with_asides + 1)
    other = batch.part(1 - with_asides, 2 - with_asides)
    assert (part.asides.at.tolist(), part.asides.items.tolist()) == ([3, 5], [3, 0])
    assert len(other.asides.at) == 0
    assert part.asides.pool.tolist() == other.asides.pool.tolist() == [3, 0]
    assert part.asides.targets == other.asides.targets == 3


def test_a_model_answers_the_same_with_and_without_asides():
    pytest.importorskip("transformers")
    from genrec_bench.methods.language.backbone import tiny_llama
    from genrec_bench.methods.language.codes import packed_states

    model = tiny_llama(30, layers=2, dim=16, heads=2, feedforward=32)
    rows = asides_between()
    kept = rows.levels != ASIDE
    bare = TokenSequences(np.array([0, 4, 6]), rows.tokens[kept], rows.levels[kept])
    states = []
    with torch.no_grad():
        for sequences in (rows, bare):
            (batch,) = packed_batches(sequences, 8, 100, PAD, np.random.default_rng(0))
            states.append(packed_states(model, batch, torch.ones(16))[batch.at])
    assert torch.allclose(*states, atol=1e-6)


def test_pairs_by_hand():
    prompts = TokenSequences.of([[1, 5], [1]])
    answers = TokenSequences(np.array([0, 1, 3]), np.array([8, 8, 9], np.int32), np.array([0, 0, 1], np.int8))
    (batch,) = pair_batches(prompts, answers, 0, 10, PAD, np.random.default_rng(0))
    assert batch.prompts.tolist() == [[1, 0], [1, 5]]  # sorted by length
    assert batch.mask.tolist() == [[True, False], [True, True]]
    assert batch.decoder.tolist() == [[0, 8], [0, 8]]
    assert batch.answers.tolist() == [[8, 9], [8, 0]]
    assert batch.levels.tolist() == [[0, 1], [0, GIVEN]]


@pytest.fixture
def items() -> ItemTokens:
    """Items 0, 1, 2 with codes (0, 1), (1,), (1, 0): the second one is shorter and ends with the end token."""
    index = ItemIndex(np.array([[0, 1], [1, -1], [1, 0]]), level_tokens([2, 2]))
    return ItemTokens.of(index, [torch.tensor([10, 11]), torch.tensor([20, 21])], END)


def test_asides_follow_what_is_learned(items):
    rows = make_histories([[0, 2], [1]])
    examples = items.histories(rows, learn=True, separator=TokenSequences.of([[7]]), asides=True)
    assert lists(examples) == [[10, 21, 7, 11, 20, 7, 2], [11, END, 7]]
    assert examples.levels.tolist() == [GIVEN, GIVEN, GIVEN, 0, 1, GIVEN, ASIDE, GIVEN, GIVEN, GIVEN]


def test_codes_of_histories(items):
    rows = make_histories([[0, 1], [], [2]])
    assert items.ids.tolist() == [[10, 21], [11, END], [11, 20]]
    read = items.histories(rows)
    assert lists(read) == [[10, 21, 11, END], [], [11, 20]]
    assert set(read.levels) == {GIVEN}
    learned = items.histories(rows, learn=True, separator=TokenSequences.of([[9]]))
    assert lists(learned) == [[10, 21, 9, 11, END, 9], [], [11, 20, 9]]
    assert levels(learned) == [[GIVEN, GIVEN, GIVEN, 0, 1, GIVEN], [], [GIVEN] * 3]


def test_windows_and_prefixes():
    rows = make_histories([[1, 2, 3, 4], [5], [6, 7]], users=[3, 5, 8])
    prefixes = training_prefixes(rows, 2)
    assert [prefixes.row(b).tolist() for b in range(len(prefixes))] == [[1, 2], [1, 2, 3], [2, 3, 4], [6, 7]]
    assert prefixes.users.tolist() == [3, 3, 3, 8]
    windows = training_windows(rows, 3, np.random.default_rng(0))
    assert sorted(windows.row(b).tolist() for b in range(len(windows))) == [[1, 2, 3, 4], [6, 7]]
    assert sorted(windows.users.tolist()) == [3, 8]


def test_thinning_leaves_out_a_share_of_the_items_and_keeps_their_order():
    rows = make_histories([list(range(400)), [], [7]] + [list(range(40)) for _ in range(50)])
    made = thinned(rows, 0.5, np.random.default_rng(0))
    assert made.users.tolist() == rows.users.tolist()
    assert all((np.diff(made.row(b)) > 0).all() for b in range(len(made)))
    shares = 1 - made.lengths[3:] / 40
    assert shares.max() < 0.75
    assert 0.15 < shares.mean() < 0.35
    assert shares.std() > 0.08  # each row has a share of its own
    again = thinned(rows, 0.5, np.random.default_rng(1))
    assert again.items.tolist() != made.items.tolist()
    none_left_out = training_windows(rows, 30, np.random.default_rng(2))
    assert np.array_equal(training_windows(rows, 30, np.random.default_rng(2), 0.0).items, none_left_out.items)
    assert len(training_windows(rows, 30, np.random.default_rng(2), 0.5).items) < len(none_left_out.items)


@given(st.lists(st.integers(0, 9), min_size=2, max_size=40), st.integers(1, 5))
def test_each_item_but_the_first_is_a_target_once(sequence, max_history):
    rows = make_histories([sequence])
    for made in (training_windows(rows, max_history, np.random.default_rng(1)), training_prefixes(rows, max_history)):
        assert made.lengths.max() <= max_history + 1
    windows = training_windows(rows, max_history, np.random.default_rng(1))
    targets = [item for b in range(len(windows)) for item in windows.row(b)[1:].tolist()]
    assert sorted(targets) == sorted(sequence[1:])
    prefixes = training_prefixes(rows, max_history)
    assert [int(prefixes.row(b)[-1]) for b in range(len(prefixes))] == sequence[1:]
