"""Intervals and tests against scipy and values worked by hand."""

import time

import numpy as np
import pytest
from scipy import stats

from genrec_bench.benchmark import statistics

RNG = np.random.default_rng(0)


def test_over_seeds_leaves_missing_values_out():
    values = statistics.over_seeds([np.array([1.0, 0.0, np.nan]), np.array([0.0, np.nan, np.nan])])
    assert values.tolist()[:2] == [0.5, 0.0]
    assert np.isnan(values[2])


def test_bootstrap_agrees_with_resampling_users_one_by_one():
    values = np.where(RNG.random(400) < 0.3, RNG.random(400), 0.0)
    ours = statistics.bootstrap({"m": values}, resamples=4000)["m"]
    resampled = RNG.choice(values, size=(4000, 400)).mean(axis=1)
    assert ours.mean == pytest.approx(values.mean())
    error = values.std() / 20
    assert ours.low == pytest.approx(np.percentile(resampled, 2.5), abs=0.1 * error)
    assert ours.high == pytest.approx(np.percentile(resampled, 97.5), abs=0.1 * error)


def test_bootstrap_of_a_ratio_counts_only_those_who_count():
    values = np.array([1.0, 0.0, np.nan, np.nan])
    found = statistics.bootstrap({"ratio": values, "all": np.ones(4), "none": np.full(4, np.nan)})
    assert set(found) == {"ratio", "all"}
    assert (found["ratio"].mean, found["ratio"].low, found["ratio"].high) == (0.5, 0.0, 1.0)
    assert (found["all"].low, found["all"].high) == (1.0, 1.0)


def test_a_user_weighs_as_much_as_the_seeds_under_which_it_counts():
    """Seeds: (1, -) and (0, 0) for two users: one right of three that count, though the mean of the users is 1/2."""
    seeds = [np.array([1.0, 0.0]), np.array([np.nan, 0.0])]
    values, share = statistics.over_seeds(seeds), statistics.counted_share(seeds)
    assert share.tolist() == [0.5, 1.0]
    assert statistics.bootstrap({"m": values}, {"m": share})["m"].mean == pytest.approx(1 / 3)
    assert statistics.bootstrap({"m": values})["m"].mean == 0.5


def test_bootstrap_is_seeded():
    values = RNG.integers(0, 3, 100).astype(float)
    once = statistics.bootstrap({"m": values}, seed=3)
    assert once == statistics.bootstrap({"m": values.copy()}, seed=3)
    assert once != statistics.bootstrap({"m": values}, seed=4)
    assert statistics.bootstrap({"m": np.empty(0)}) == {}


def test_many_users_are_drawn_by_their_distinct_rows(monkeypatch):
    """The same experiment: both ways agree within what a thousand resamples leave open."""
    values = {"hit": (RNG.random(3000) < 0.2).astype(float), "ratio": RNG.choice([0.0, 1.0, np.nan], 3000)}
    one_by_one = statistics.bootstrap(values)
    monkeypatch.setattr(statistics, "DRAWN_ONE_BY_ONE", 100)
    by_rows = statistics.bootstrap(values)
    for name, one in one_by_one.items():
        tolerance = 0.1 * (one.high - one.low)
        assert by_rows[name].mean == pytest.approx(one.mean, abs=1e-12)
        assert by_rows[name].low == pytest.approx(one.low, abs=tolerance)
        assert by_rows[name].high == pytest.approx(one.high, abs=tolerance)
    assert by_rows == statistics.bootstrap({name: column[::-1] for name, column in values.items()})


@pytest.mark.parametrize("most", [100, 10_000])
@pytest.mark.parametrize("cells", [1, 10**6])
def test_rows_of_a_table_have_the_intervals_that_they_have_alone(monkeypatch, most, cells):
    monkeypatch.setattr(statistics, "DRAWN_ONE_BY_ONE", most)
    monkeypatch.setattr(statistics, "BLOCK_CELLS", cells)
    rows = []
    for users in (50, 300, 300, 50):
        values = RNG.choice([0.0, 0.5, np.nan], users)
        rows.append(({"a": RNG.random(users).round(1), "b": values, "c": np.full(users, np.nan)}, {}))
    rows[1][1]["b"] = np.where(np.isnan(rows[1][0]["b"]), 0.0, 0.5)
    for row, found in zip(rows, statistics.bootstrap_each(rows), strict=True):
        alone = statistics.bootstrap(*row)
        assert list(found) == list(alone) == ["a", "b"]
        for name, one in found.items():
            assert one.model_dump() == pytest.approx(alone[name].model_dump(), abs=1e-12)


def test_bootstrap_is_fast_where_all_values_differ():
    values = {str(i): RNG.random(22_363) for i in range(10)}
    started = time.process_time()
    statistics.bootstrap(values)
    assert time.process_time() - started < 10  # 1.4 s on an idle core; room for a busy one


def test_paired_t_agrees_with_scipy():
    a, b = RNG.random(50), RNG.random(50)
    assert statistics.paired_t(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    a[3] = np.nan  # this user counts in one of the two only
    assert statistics.paired_t(a, b) == pytest.approx(stats.ttest_rel(np.delete(a, 3), np.delete(b, 3)).pvalue)


@pytest.mark.parametrize("test", [statistics.paired_t, statistics.sign_flip, statistics.mcnemar])
def test_equal_values_are_never_significant(test):
    assert test(np.array([1.0, 0.0, 1.0]), np.array([1.0, 0.0, 1.0])) == 1.0
    assert test(np.empty(0), np.empty(0)) == 1.0


def test_a_constant_difference_is_certain():
    assert statistics.paired_t(np.full(5, 0.75), np.full(5, 0.5)) == 0.0


def test_sign_flip_agrees_with_the_exact_count():
    """Five differences of +1: 2 of the 32 assignments are as extreme, p = 1/16. Zeros change nothing."""
    a, b = np.array([1.0, 1, 1, 1, 1, 0, 0]), np.zeros(7)
    assert statistics.sign_flip(a, b) == pytest.approx(1 / 16, abs=0.008)
    assert statistics.sign_flip(a, b) == statistics.sign_flip(a[:5], b[:5])


def test_sign_flip_agrees_with_scipy():
    a, b = RNG.random(40) + 0.1, RNG.random(40)
    exact = stats.permutation_test(
        (a, b), lambda x, y, axis: (x - y).mean(axis=axis), permutation_type="samples", n_resamples=20_000,
        vectorized=True, rng=np.random.default_rng(1),
    )  # fmt: skip
    assert statistics.sign_flip(a, b) == pytest.approx(exact.pvalue, abs=0.015)


def test_mcnemar_by_hand():
    """a alone is right 5 times, b alone once: p = 2 * (C(6,0) + C(6,1)) / 2**6 = 14/64."""
    a = np.array([1.0] * 5 + [0.0] + [1.0] * 10)
    b = np.array([0.0] * 5 + [1.0] + [1.0] * 10)
    assert statistics.mcnemar(a, b) == pytest.approx(14 / 64)


def test_holm_by_hand():
    """Sorted .01 .02 .04 times 3 2 1 = .03 .04 .04; the running maximum keeps the order."""
    assert statistics.holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert statistics.holm([0.02, 0.03]) == pytest.approx([0.04, 0.04])
    assert statistics.holm([0.7, 0.9]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_tied_with_best():
    base = RNG.random(200)
    found = statistics.tied_with_best(
        {
            "best": base,
            "close": base - 0.001 * RNG.standard_normal(200) - 0.00001,
            "worse": base - 0.2 + 0.1 * RNG.standard_normal(200),
            "nothing": np.full(200, np.nan),
        }
    )
    assert found == {"best": True, "close": True, "worse": False, "nothing": False}
    assert statistics.tied_with_best({"only": base}) == {"only": True}
    assert statistics.tied_with_best({"a": np.full(3, np.nan)}) == {"a": False}


def test_more_rivals_need_more_evidence():
    """p = .03 against the best is significant alone, and no longer among three (Holm)."""
    base = RNG.random(60)
    noise = RNG.standard_normal(60)
    rival = base - (0.01 + 0.01 * (noise - noise.mean()) / noise.std(ddof=1) * np.sqrt(60) / stats.t.isf(0.015, 59))
    assert statistics.paired_t(base, rival) == pytest.approx(0.03)
    assert not statistics.tied_with_best({"best": base, "rival": rival})["rival"]
    again = {"best": base, "rival": rival, "second": rival.copy(), "third": rival.copy()}
    assert statistics.tied_with_best(again)["rival"]
