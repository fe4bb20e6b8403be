"""Who is trained on, who is asked, and about what: both protocols by hand and by property."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import make_data, rows_of
from hypothesis import given
from hypothesis import strategies as st

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.splits import by_sequence, leave_one_out, normalised_title


def sequences(count: int, length: int = 5, num_items: int = 60, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.permutation(num_items)[:length].tolist() for _ in range(count)]


def test_leave_one_out_by_hand():
    data = make_data([[5, 6, 7, 8], [1, 2], [3, 4, 0], [], [9]], timestamps=[[1, 2, 3, 4], [5, 6], [7, 8, 9], [], [10]])
    split = leave_one_out(data)
    # two and fewer interactions: trained on whole, never asked about
    assert rows_of(split.train.sequences) == [[5, 6], [1, 2], [3], [], [9]]
    assert split.train.timestamps.tolist() == [1, 2, 5, 6, 7, 10]
    assert rows_of(split.train_and_valid.sequences) == [[5, 6, 7], [1, 2], [3, 4], [], [9]]
    assert split.valid.histories.users.tolist() == split.test.histories.users.tolist() == [0, 2]
    assert rows_of(split.valid.histories) == [[5, 6], [3]]
    assert split.valid.targets.tolist() == [7, 4]
    assert rows_of(split.test.histories) == [[5, 6, 7], [3, 4]]
    assert split.test.targets.tolist() == [8, 0]
    assert split.train.num_users == 5
    assert split.test.candidates is None


@given(st.lists(st.lists(st.integers(0, 9), max_size=8), min_size=1, max_size=8))
def test_leave_one_out_gives_every_interaction_one_place(rows):
    data = make_data(rows, num_items=10)
    if not any(len(row) >= 3 for row in rows):
        with pytest.raises(InputError, match="3 or more interactions"):
            leave_one_out(data)
        return
    split = leave_one_out(data)
    parts = rows_of(split.train.sequences)
    for user, valid, test in zip(split.test.histories.users, split.valid.targets, split.test.targets, strict=True):
        parts[user] = [*parts[user], int(valid), int(test)]
    assert parts == rows


@pytest.mark.parametrize("split", [leave_one_out, by_sequence])
def test_training_arrays_share_no_memory_with_the_data(split):
    data = make_data(sequences(40), num_items=60, timestamps=[[1, 2, 3, 4, 5]] * 40)
    one = split(data)
    own = (data.sequences.items, data.sequences.offsets, data.sequences.users, data.timestamps)
    for view in (one.train, one.train_and_valid):
        for array in (view.sequences.items, view.sequences.offsets, view.sequences.users, view.timestamps):
            assert not any(np.shares_memory(array, other) for other in own)
            assert array.base is None or array.base.size == array.size  # no view into something larger


@pytest.mark.parametrize(("count", "tenth"), [(943, 95), (1220, 122), (30, 3), (11, 2), (3, 1)])
def test_by_sequence_sizes(count, tenth):
    split = by_sequence(make_data(sequences(count), num_items=60))
    assert len(split.test.targets) == len(split.valid.targets) == tenth
    assert len(split.train.sequences) == count - 2 * tenth
    assert len(split.train_and_valid.sequences) == count - tenth


def test_by_sequence_tests_the_latest_and_skips_the_short():
    rows = [row[: 4 + (u % 3)] for u, row in enumerate(sequences(20, length=6))]
    rows[7] = rows[7][:3]  # two history items and a target: too short for training as well
    last = np.random.default_rng(1).permutation(20)
    split = by_sequence(
        make_data(
            rows, num_items=60, timestamps=[[0] * (len(row) - 1) + [int(t)] for row, t in zip(rows, last, strict=True)]
        )
    )
    by_time = [u for u in np.argsort(last) if u != 7]
    assert split.test.histories.users.tolist() == sorted(by_time[-2:])
    assert split.valid.histories.users.tolist() == sorted(by_time[-4:-2])
    assert split.train.sequences.users.tolist() == sorted(by_time[:-4])
    assert rows_of(split.train.sequences) == [rows[u] for u in sorted(by_time[:-4])]
    assert split.test.targets.tolist() == [rows[u][-1] for u in sorted(by_time[-2:])]


def test_by_sequence_without_times_goes_by_user_number():
    """As the cut of LastFM, which has the order within a sequence and no more."""
    split = by_sequence(make_data(sequences(40), num_items=60))
    assert split.test.histories.users.tolist() == [36, 37, 38, 39]
    assert split.valid.histories.users.tolist() == [32, 33, 34, 35]


def test_by_sequence_shows_the_last_ten_before_the_target():
    split = by_sequence(make_data(sequences(30, length=14), num_items=60))
    whole = dict(enumerate(sequences(30, length=14)))
    for user, shown in zip(split.test.histories.users, rows_of(split.test.histories), strict=True):
        assert shown == whole[int(user)][3:13]


def test_candidates_hold_the_target_once_and_nothing_of_the_user():
    data = make_data(sequences(100, length=15), num_items=60)
    split = by_sequence(data)
    for held_out in (split.valid, split.test):
        assert held_out.candidates.shape == (10, 20)
        for user, target, row in zip(held_out.histories.users, held_out.targets, held_out.candidates, strict=True):
            assert len(set(row.tolist())) == 20
            assert set(row.tolist()) & set(data.sequences.row(user).tolist()) == {target}
    columns = (split.test.candidates == split.test.targets[:, None]).argmax(1)
    assert len(set(columns.tolist())) > 3  # shuffled: the target has no fixed place


def test_candidates_exclude_the_window_only_when_asked():
    """40 of 60 items are the user's own: the official sampler, which excludes ten of them, must hit the others."""
    data = make_data(sequences(30, length=40), num_items=60)
    split = by_sequence(data, exclude="window")
    older = 0
    for user, shown, row in zip(
        split.test.histories.users, rows_of(split.test.histories), split.test.candidates, strict=True
    ):
        assert not set(shown) & set(row.tolist())
        older += len(set(data.sequences.row(user)[:-11].tolist()) & set(row.tolist()))
    assert older > 10


def test_no_two_candidates_look_the_same():
    titles = [f"  Title\u00a0{i % 25} " if i % 2 else f"tITLE {i % 25}" for i in range(60)]
    assert normalised_title(titles[1]) == "title 1"
    split = by_sequence(make_data(sequences(30, length=5), num_items=60, titles=titles))
    for row in split.test.candidates.tolist():
        assert len({normalised_title(titles[i]) for i in row}) == 20


def test_items_without_a_title_are_no_duplicates_of_each_other():
    split = by_sequence(make_data(sequences(30), num_items=60, titles=[""] * 60))
    assert split.test.candidates.shape == (3, 20)


def test_candidates_of_a_user_depend_on_data_seed_and_user_alone():
    rows = sequences(40)
    data = replace(make_data(rows, num_items=60), sha256="ab" * 32)
    by_user = {
        int(u): row.tolist()
        for u, row in zip(by_sequence(data).test.histories.users, by_sequence(data).test.candidates, strict=True)
    }
    # other users' items, and the order in which they are asked, change nothing
    others = [row if u in by_user else row[::-1] for u, row in enumerate(rows)]
    again = by_sequence(replace(make_data(others, num_items=60), sha256="ab" * 32))
    assert again.test.candidates.tolist() == list(by_user.values())
    more_history = by_sequence(data, history=2)
    assert more_history.test.candidates.tolist() == list(by_user.values())
    assert by_sequence(data, seed=1).test.candidates.tolist() != list(by_user.values())
    assert by_sequence(replace(data, sha256="cd" * 32)).test.candidates.tolist() != list(by_user.values())


def test_candidates_of_a_user_do_not_depend_on_who_else_is_tested():
    """The same users tested among others, in other rows, keep their lists."""
    rows = sequences(40)

    def lists(latest: list[int]) -> dict[int, list[int]]:
        times = [[0, 0, 0, 0, 1 + (u in latest)] for u in range(40)]
        split = by_sequence(replace(make_data(rows, num_items=60, timestamps=times), sha256="ab" * 32))
        users = split.test.histories.users.tolist()
        assert users == latest
        return dict(zip(users, split.test.candidates.tolist(), strict=True))

    first, second = lists([3, 8, 20, 30]), lists([1, 3, 5, 20])
    assert first[3] == second[3]
    assert first[20] == second[20]
    assert first[8] != first[30]


def test_every_bit_of_the_content_hash_counts():
    """Hashes from 2**63 up once went through float64: they lost their low bits, or all of them."""
    data = make_data(sequences(40), num_items=60)
    lists = [
        by_sequence(replace(data, sha256=start + "0" * 48)).test.candidates.tolist()
        for start in ("f" * 16, "f" * 15 + "e", "8" + "0" * 14 + "1", "8" + "0" * 15)
    ]
    assert all(lists[i] != lists[j] for i in range(4) for j in range(i))


def test_candidates_that_cannot_be_drawn():
    with pytest.raises(InputError, match="20 candidates exceed the catalogue of 12 items"):
        by_sequence(make_data(sequences(30, num_items=12), num_items=12))
    with pytest.raises(InputError, match=r"user u\d+ has interacted with all but 10 items, so 19 negatives"):
        by_sequence(make_data(sequences(30, length=20, num_items=30), num_items=30))
    with pytest.raises(InputError, match="2 sequences have more than 3 items; 3 are needed"):
        by_sequence(make_data([*sequences(2), [1, 2, 3]], num_items=60))
