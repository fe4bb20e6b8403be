"""What a kept run's parts do: overlaps and prefixes by hand, circles of the right areas, report and pictures."""

from types import SimpleNamespace

import numpy as np
import pytest
from test_runner import run

from genrec_bench.benchmark import analysis
from genrec_bench.benchmark.analysis import Analysis
from genrec_bench.benchmark.recommend import load_run
from genrec_bench.datasets.errors import InputError

pytest.importorskip("transformers")

MODEL = {
    "architecture": "decoder_only", "bf16": False, "layers": 1, "width": 16, "heads": 1, "feedforward": 32, "epochs": 2,
    "max_history": 4, "loss_over": "trie", "index": {"builder": "random", "levels": 2, "codes": 16},
}  # fmt: skip
AGREC = {
    "method": "agrec",
    "config": {
        "lm": {"method": "tiger", "settings": MODEL},
        "graph": {"encoder": "lightgcn", "settings": {"dim": 8, "epochs": 3}},
    },
}


@pytest.fixture
def kept(stored, tmp_path) -> Analysis:
    results = tmp_path / "results"
    assert run(results, [AGREC], keep_models=True).done == 1
    (folder,) = (results / "tiny" / "agrec").iterdir()
    return Analysis(load_run(folder.name, results))


def test_users_are_counted_once_each_whoever_serves_them(kept):
    ranks = {"language model": [1, 0, 3, 11, 0], "graph": [10, 2, 0, 0, 0], "whole": [1, 1, 0, 2, 1]}
    vars(kept)["answers"] = {name: SimpleNamespace(ranks=np.array(of)) for name, of in ranks.items()}
    assert kept.overlap() == [
        ("language model and graph", 1, 1.0),
        ("language model alone", 1, 0.0),
        ("graph alone", 1, 1.0),
        ("none of them", 2, 1.0),
    ]


def test_distinct_prefixes_of_a_list_written_out():
    numbers = np.array([[0, 0, 1, -1], [2, 2, 2, 2], [-1, -1, -1, -1], [3, 1, 2, 0]])
    assert analysis._distinct(numbers).tolist() == [2, 1, 0, 4]


def test_prefixes_are_counted_over_the_lists(kept):
    rows = kept.homogeneity()
    assert [row[0] for row in rows] == ["language model", "graph", "whole"]
    items = kept.answers["graph"].ranking.items[:, : analysis.LISTED]
    first = [len({kept.kept.method.code(int(item))[0] for item in row if item >= 0}) for row in items]
    assert rows[1][1] == pytest.approx(np.mean(first))
    assert all(1 <= row[1] <= row[2] <= analysis.LISTED for row in rows)


@pytest.mark.parametrize(
    ("first", "second", "share"), [(2.0, 1.0, 0.5), (1.0, 1.0, 0.1), (3.0, 1.0, 1.0), (1.0, 1.0, 0.0)]
)
def test_circles_share_the_area_asked_for(first, second, share):
    common = share * np.pi * min(first, second) ** 2
    assert analysis._lens(first, second, analysis._distance(first, second, common)) == pytest.approx(common, abs=1e-6)


def test_the_report_and_its_pictures(kept, tmp_path):
    text = kept.report(user="user3")
    for said in (
        "alpha, on validation",
        "language model and graph",
        "distinct prefixes among 20",
        "User user3",
        "code",
    ):
        assert said in text
    numbers = [count for _, count, _ in kept.overlap()]
    assert sum(numbers) == len(kept.test.targets)
    pytest.importorskip("matplotlib")
    names = {path.name for path in kept.draw(tmp_path / "pictures")}
    assert names == {"alpha.png", "overlap.png", "items-language-model.png", "items-graph.png"}
    assert all((tmp_path / "pictures" / name).stat().st_size > 5_000 for name in names)


def test_a_method_without_parts_has_a_report_too(stored, tmp_path):
    results = tmp_path / "results"
    run(results, ["markov"], keep_models=True)
    (folder,) = (results / "tiny" / "markov").iterdir()
    made = Analysis(load_run(folder.name, results))
    assert "markov" in made.report()
    with pytest.raises(InputError, match="'nobody'"):
        made.report(user="nobody")


def test_the_command(kept, command, tmp_path):
    code, said, _ = command("analyse", "--run", kept.kept.record.run_id, "--results", tmp_path / "results")
    assert code == 0
    assert "of them the whole serves" in said
    code, _, complaint = command("analyse", "--run", "nothing", "--results", tmp_path / "results")
    assert code == 2
    assert "nothing" in complaint
