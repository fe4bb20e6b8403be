"""Two methods against each other, worked by hand."""

import numpy as np
import pytest
from scipy import stats
from test_leaderboard import BEAUTY, CAND20, FULL, add

from genrec_bench.benchmark import compare, standings, statistics
from genrec_bench.datasets.errors import InputError

A = [1] * 12 + [0] * 8  # users found by a
B = [1] * 5 + [0] * 14 + [1]


@pytest.fixture
def results(tmp_path):
    add(tmp_path, "a", 0, A)
    add(tmp_path, "b", 0, B, method="tiger")
    return tmp_path


def comparisons(results, a="a", b="b"):
    found, _, load_ranks = standings.load(results)
    return compare.compare(found, a, b, load_ranks)


def test_one_metric_by_hand(results):
    """a alone finds 7, b alone 1: difference 6 of 20; sign flip over 8 differences: 18 of 256 are as extreme."""
    rows = {row.metric: row for row in comparisons(results)}
    assert set(rows) == {"recall@5", "recall@10", "ndcg@5", "ndcg@10"}
    row = rows["recall@10"]
    assert row.means == (0.6, 0.3)
    assert row.difference.mean == pytest.approx(0.3)
    assert row.t_test == pytest.approx(stats.ttest_rel(np.minimum(A, 1), np.minimum(B, 1)).pvalue)
    assert row.sign_flip == pytest.approx(18 / 256, abs=0.008)
    assert row.t_test_holm == pytest.approx(min(1, 4 * row.t_test))  # four equal p-values
    assert row.mcnemar is None
    assert row.seeds == (1, 1)


def test_mcnemar_for_one_run_each_only(tmp_path):
    add(tmp_path, "a", 0, [1] * 12 + [2] * 8, protocol=CAND20)
    add(tmp_path, "b", 0, [1] * 5 + [2] * 14 + [1], protocol=CAND20)
    rows = {row.metric: row for row in comparisons(tmp_path)}
    assert rows["hitratio@1"].mcnemar == pytest.approx(18 / 256)
    assert rows["validratio"].mcnemar is None
    assert rows["validratio"].t_test == 1.0
    add(tmp_path, "a", 1, [1] * 20, protocol=CAND20)
    again = {row.metric: row for row in comparisons(tmp_path)}["hitratio@1"]
    assert (again.seeds, again.means, again.mcnemar) == ((1, 1), (0.6, 0.3), pytest.approx(18 / 256))  # seed 0 of both
    add(tmp_path, "b", 1, [1] * 10 + [2] * 10, protocol=CAND20)
    again = {row.metric: row for row in comparisons(tmp_path)}["hitratio@1"]
    assert again.mcnemar is None
    assert again.seeds == (2, 2)
    assert again.means == (0.8, 0.4)  # (.6 + 1) / 2, (.3 + .5) / 2


def test_a_method_that_counts_is_the_same_under_all_seeds(tmp_path):
    add(tmp_path, "a", 0, [1] * 12 + [2] * 8)
    add(tmp_path, "a", 1, [1] * 20)
    add(tmp_path, "c", 0, B, method="markov", family="counting")
    assert {row.seeds for row in comparisons(tmp_path, "a", "c")} == {(2, 1)}


def test_holm_covers_all_tables(results):
    add(results, "a", 0, A, dataset={**BEAUTY, "name": "toy"})
    add(results, "b", 0, A, dataset={**BEAUTY, "name": "toy"})
    rows = comparisons(results)
    assert len(rows) == 8
    assert [row.t_test_holm for row in rows] == pytest.approx(statistics.holm([row.t_test for row in rows]))


def test_methods_meet_only_under_the_same_rules(tmp_path):
    add(tmp_path, "a", 0, A)
    add(tmp_path, "b", 0, B, protocol={**FULL, "mask_seen": True, "hash": "bbbbbbbbbbbb"})
    with pytest.raises(InputError, match="no data set, protocol and tier in common"):
        comparisons(tmp_path)


def test_names_that_do_not_work(results):
    with pytest.raises(InputError, match=r"Unknown method in the records 'tigre'. Did you mean: tiger"):
        comparisons(results, "a", "tigre")
    with pytest.raises(InputError, match="name the same row"):
        comparisons(results, "b", "tiger")
    add(results, "a2", 0, A)
    with pytest.raises(InputError, match="'sasrec' names 2 rows: give one of a; a2"):
        comparisons(results, "sasrec", "b")
    with pytest.raises(InputError, match="holds no records"):
        compare.render(results / "absent", "a", "b")
    with pytest.raises(InputError, match="Unknown format"):
        compare.render(results, "a", "b", "html")


def test_text_golden(results):
    lines = compare.render(results, "a", "b").splitlines()
    assert lines[0] == "a = a, b = b: means over users, seeds averaged per user (1 and 1 seeds)"
    cells = lines[4].split("  ")
    p = stats.ttest_rel(A, B).pvalue
    shown = [cell.strip() for cell in cells if cell.strip()]
    assert shown[:5] == ["amazon2014-beauty · full · tiny", "Recall@10", "20", "0.6000", "0.3000"]
    assert shown[5].startswith("+0.3000 [+")
    assert shown[6:8] == [f"{p:.4f}", f"{4 * p:.4f}"]
    assert lines[-1] == "* significant: p < 0.05 after Holm's correction of 4 t-tests"
    assert compare.render(results, "a", "b") == compare.render(results, "a", "b")


def test_markdown_escapes_names(tmp_path):
    add(tmp_path, "a|b", 0, A)
    add(tmp_path, "<c>", 0, B, method="tiger")
    text = compare.render(tmp_path, "a|b", "<c>", "md")
    assert text.startswith(r"a = a\|b, b = &lt;c&gt;: means")
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
