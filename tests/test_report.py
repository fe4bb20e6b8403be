"""The HTML report: what it draws, that everything in it is text, and that it needs nothing but itself."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from test_leaderboard import BEAUTY, CAND20, add, fail
from test_records import make_record

from genrec_bench.benchmark import figures, plots, report, standings, statistics, svg, tables
from genrec_bench.benchmark.figures import CriticalDifference
from genrec_bench.benchmark.statistics import Interval

HOSTILE = "<script>alert(1)</script>"
ML = {"name": "ml-100k", "sha256": "11ee", "users": 943, "items": 1682, "interactions": 100_000}
ALPHA = {"alpha": {"0.0": 0.1, "0.5": 0.3, "1.0": 0.2}, "index": {"builder": "rqvae", "items": 20}}


def cost(**changes: Any) -> dict[str, Any]:
    return {**make_record().cost.model_dump(), **changes}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two data sets, three families, an empty cell, and names that would like to be markup."""
    add(tmp_path, "gold", 0, [1, 1, 1, 0], method="tiger", family="generative", published_as="TIGER", stages=ALPHA,
        cost=cost(train_seconds=600.0, users_per_second=20.0))  # fmt: skip
    add(tmp_path, "silver", 0, [1, 1, 0, 0], cost=cost(train_seconds=60.0, users_per_second=900.0))
    add(tmp_path, "silver", 1, [1, 0, 1, 0], cost=cost(train_seconds=62.0, users_per_second=900.0))
    add(tmp_path, HOSTILE, 0, [1, 0, 0, 0], method="item_knn", family="counting",
        overrides={"note": "</script><script>alert(2)</script>"}, cost=cost(train_seconds=0.0))  # fmt: skip
    add(tmp_path, "gold", 0, [1, 2, 1, 1], method="tiger", family="generative", dataset=ML)
    add(tmp_path, "picks", 0, [1, 1, 0, 2], dataset=ML, protocol=CAND20)
    fail(tmp_path, "bronze", 0, f"out of memory {HOSTILE}", method="agrec")
    return tmp_path


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found.group(1))


def test_the_page_stands_alone(results):
    page = report.render(results)
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:,)""", page)
    assert "@import" not in page
    assert "url(" not in page
    assert "default-src 'none'" in page
    assert not re.findall(r"https?://", page)


def test_everything_from_outside_is_text(results):
    page = report.render(results)
    assert page.count("<script") == 2  # the data and ours
    assert page.count("</script>") == 2
    assert "alert(1)&lt;/script&gt;" in page
    assert "missing: out of memory &lt;script&gt;" in page
    rows = [row for table in data_of(page)["tables"] for row in table["rows"]]
    assert HOSTILE in {row[0] for row in rows}
    settings = data_of(page)["texts"][next(row for row in rows if row[0] == HOSTILE)[5]]
    assert json.loads(settings) == {"note": "</script><script>alert(2)</script>"}


def test_every_run_is_behind_its_row(results):
    data = data_of(report.render(results))
    runs = {run[0] for table in data["tables"] for row in table["rows"] for run in row[8]}
    assert runs == {path.parent.name for path in results.rglob("run.json")}
    silver = next(row for row in data["tables"][0]["rows"] if row[0] == "silver")
    assert [run[1] for run in silver[8]] == [0, 1]
    recall = next(cell for cell in silver[7] if data["texts"][cell[0]] == "Recall@10")
    assert recall[1] == 5000


def test_same_records_same_bytes_and_the_command_writes_it(results, command, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "board.html"
    assert command("leaderboard", "--results", results, "--format", "html", "--output", file)[0] == 0
    assert file.read_text(encoding="utf-8") == report.render(results)


def test_verdicts_marks_and_notes_are_on_the_page(results):
    page = report.render(results)
    assert re.search(r'0\.0648 <span class="verdict v-higher">', page)
    assert "EAGER-LLM, table 2" in page
    assert '<span class="hidden"> tied with best</span>' in page
    assert page.count('<span class="hidden"> best</span>') >= 4


def test_states_of_the_same_weights_stand_under_their_table(tmp_path):
    """In the words of the other forms; a state's name comes from a method, so it is text."""
    metrics_of = {"recall@10": {"mean": 0.375, "low": 0.0, "high": 1.0}}
    variants = [{"name": f"adapter off {HOSTILE}", "metrics": metrics_of, "text": {"exact_match": 0.5}}]
    add(tmp_path, "two_states", 0, [1, 0, 0, 0], variants=variants)
    page = report.render(tmp_path)
    assert tables.STATES in page
    assert tables.STATES in standings.render(tmp_path, "md")
    grid = re.search(r'<details class="slices states".*?</details>', page, re.S).group()
    assert re.findall("<th scope=.col.>(.*?)</th>", grid) == [
        "method", "state", "Recall@10", "NDCG@10", "title exact", "title F1",
    ]  # fmt: skip
    assert re.findall("<t[hd](?: scope=.row.)?>(.*?)</t[hd]>", grid) == [
        "two_states", "adapter off &lt;script&gt;alert(1)&lt;/script&gt;", "0.3750", "", "0.5000", "",
    ]  # fmt: skip


def test_the_frontier_is_what_nothing_beats_at_less_cost(results):
    board, _ = standings.read(results)
    table = next(table for table in board.tables if table.key.dataset == BEAUTY["name"])
    by_time = figures.frontier(table, "train_seconds")
    assert by_time is not None
    assert {one.name: (one.cost, one.on_frontier) for one in by_time.points} == {
        "gold": (600.0, True), "silver": (61.0, True), HOSTILE: (figures.SHORTEST_S, True),
    }  # fmt: skip
    by_speed = figures.frontier(table, "users_per_second")
    assert by_speed is not None
    assert {one.name: one.on_frontier for one in by_speed.points} == {"gold": True, "silver": True, HOSTILE: False}
    assert figures.frontier(next(table for table in board.tables if len(table.rows) == 1), "train_seconds") is None


def test_curves_are_the_stages_whose_keys_are_numbers(results):
    board, runs = standings.read(results)
    (curve,) = [one for table in board.tables for one in figures.curves(table, runs)]
    assert (curve.row, curve.stage) == ("gold", "alpha")
    assert curve.points == ((0.0, 0.1), (0.5, 0.3), (1.0, 0.2))
    assert "best 0.3000 at 0.5" in svg.curve(curve)


def test_slices_are_means_over_seeds_and_empty_ones_are_left_out(tmp_path):
    for seed, found in ((0, 0.25), (1, 0.75)):
        of = {"ndcg@10": {"mean": found, "low": found - 0.25, "high": found + 0.25}}
        parts = {"short_history": {"users": 2, "metrics": of}, "cold_target": {"users": 0, "metrics": {}}}
        add(tmp_path, "m", seed, [1, 0, 0, 0], slices=parts)
    board, runs = standings.read(tmp_path)
    chart = figures.slice_chart(board.tables[0], runs)
    assert chart is not None
    assert chart.slices == (("short_history", 2),)
    (mean,) = chart.rows[0][1]
    assert mean is not None
    assert (mean.mean, mean.low, mean.high) == (0.5, 0.25, 0.75)


def test_a_methods_settings_stand_from_the_lowest_beside_the_paper(tmp_path):
    for label, ranks, variant in (("whole", [1, 1, 1, 0], None), ("none", [1, 0, 0, 0], "not printed"),
                                  ("half", [1, 1, 0, 0], "DKI")):  # fmt: skip
        add(tmp_path, label, 0, ranks, method="eager_llm", published_as="EAGER-LLM", published_variant=variant)
    add(tmp_path, "sasrec", 0, [1, 0, 0, 0])
    (found,) = figures.settings(standings.read(tmp_path)[0].tables[0])
    assert [step.name for step in found.steps] == ["none", "half", "whole"]
    assert [step.printed is None for step in found.steps] == [True, False, False]
    assert svg.settings(found).count('class="printed"') == 2


def test_friedman_and_nemenyi_are_those_of_demsar():
    """Chi-squared is SciPy's (made F by Iman and Davenport); quantiles are those of his table 5(a)."""
    rng = np.random.default_rng(0)
    values = rng.random((14, 4)) + np.array([0.0, 0.3, 0.1, 0.3])
    found = statistics.friedman(values)
    chi = stats.friedmanchisquare(*values.T).statistic
    assert found.statistic == pytest.approx(13 * chi / (14 * 3 - chi))
    assert found.critical_difference == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 14)), abs=1e-3)  # his example: 1.25
    assert found.p == pytest.approx(stats.f.sf(found.statistic, 3, 39))
    for methods, quantile in ((2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)):
        width = statistics.friedman(rng.random((9, methods))).critical_difference
        assert width == pytest.approx(quantile * np.sqrt(methods * (methods + 1) / 54), abs=2e-3)


def test_ranks_tie_and_bars_join_what_does_not_differ():
    agreed = statistics.friedman(np.array([[0.3, 0.2, 0.1]] * 6 + [[0.3, 0.3, 0.1]]))
    assert agreed.average_ranks == pytest.approx((6.5 / 7 + 0.5 / 7 + 0.5 / 7, (12 + 1.5) / 7, 3.0), abs=0.08)
    test = statistics.Friedman((1.0, 1.5, 2.6, 4.0), 9.0, 0.01, 1.2)
    ranks = tuple(zip("abcd", test.average_ranks, strict=True))
    figure = CriticalDifference("full", False, "sequence", "tiny", "ndcg@10", ("x", "y"), ranks, test)
    assert figure.bars == [(0, 1), (1, 2)]
    assert svg.critical_difference(figure).count('class="bar"') == 2


def test_ranks_need_enough_data_sets_with_the_same_methods(tmp_path):
    for number in range(figures.FEWEST_DATASETS):
        data = {**BEAUTY, "name": f"set{number}", "sha256": f"{number:04}"}
        for label, ranks in (("a", [1, 1, 1, 1]), ("b", [1, 1, 2, 0]), ("c", [0, 0, 3, 0])):
            add(tmp_path, label, 0, ranks, dataset=data)
        if number == figures.FEWEST_DATASETS - 2:
            assert figures.critical_differences(standings.read(tmp_path)[0]) == []
    add(tmp_path, "only here", 0, [1, 1, 1, 1], dataset=data)
    (found,) = figures.critical_differences(standings.read(tmp_path)[0])
    assert found.ranks == (("a", 1.0), ("b", 2.0), ("c", 3.0))
    assert f"over {figures.FEWEST_DATASETS} data sets" in report.render(tmp_path)


def test_axes_hold_what_they_show():
    for low, high in ((0.0, 1.0), (0.013, 0.0456), (0.1441, 0.1442), (0.5, 0.9)):
        marks = figures.ticks(low, high)
        assert marks[0] <= low + 1e-12
        assert marks[-1] >= high - 1e-12
        assert 2 <= len(marks) <= 8
    for cost_name in figures.COSTS:
        for low, high in ((0.1, 0.1), (3.0, 5000.0), (80.0, 90.0)):
            values = [value for value, _ in figures.cost_ticks(cost_name, low, high)]
            assert values[0] <= low
            assert values[-1] >= high
            assert len(values) > 1


def test_a_picture_of_one_row_has_room_for_its_titles(tmp_path, recwarn):
    pytest.importorskip("matplotlib")
    pyplot = plots.pyplot()
    chart = figures.SliceChart("ndcg@10", (("short_history", 2),), (("a", (Interval(mean=0.5, low=0.2, high=0.8),)),))
    picture = plots._slices(pyplot, chart, "Title")
    picture.canvas.draw()
    boxes = [text.get_window_extent() for text in (picture._suptitle, picture.axes[0]._left_title)]
    ticks = [label.get_window_extent() for label in picture.axes[0].get_xticklabels()]
    assert boxes[0].y0 >= boxes[1].y1
    assert min(box.y0 for box in ticks) >= picture._supxlabel.get_window_extent().y1
    pyplot.close(picture)
    assert [str(one.message) for one in recwarn] == []


def test_pictures_of_every_figure(tmp_path, command):
    """Names with a dollar sign would be formulas to matplotlib; a second drawing gives the same bytes."""
    pytest.importorskip("matplotlib")
    results = tmp_path / "results"
    parts = {"short_history": {"users": 2, "metrics": {"ndcg@10": {"mean": 0.5, "low": 0.2, "high": 0.8}}}}
    for label, ranks, variant in (("$a", [1, 1, 1, 0], None), ("$b", [1, 0, 0, 0], "none"), ("c", [1, 1, 0, 0], "DKI")):
        add(results, label, 0, ranks, method="eager_llm", published_as="EAGER-LLM", published_variant=variant,
            stages=ALPHA if label == "c" else {},
            slices=parts)  # fmt: skip
    code, said, _ = command("plot", "--results", results, "--output", tmp_path / "one", "--format", "svg")
    assert code == 0
    written = [Path(line) for line in said.splitlines()]
    assert [path.stem.removeprefix("amazon2014-beauty-full-tiny-") for path in written] == [
        "train_seconds", "users_per_second", "slices", "curve0-alpha", "settings-eager_llm",
    ]  # fmt: skip
    assert "$a" in written[0].read_text()
    command("plot", "--results", results, "--output", tmp_path / "two", "--format", "svg")
    assert [path.read_bytes() for path in written] == [(tmp_path / "two" / path.name).read_bytes() for path in written]
    assert command("plot", "--results", results, "--output", tmp_path, "--format", "gif")[0] == 2
