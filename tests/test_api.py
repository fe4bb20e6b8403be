"""The suite from Python: grids and leaderboards as pandas tables, which notebooks can show."""

import importlib
import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import test_report
from conftest import ROOT
from test_report import HOSTILE

from genrec_bench.benchmark import engines, leaderboard, run, tune
from genrec_bench.benchmark.runner import run_grid
from genrec_bench.datasets.errors import InputError

results = test_report.results
NOTEBOOK = ROOT / "docs" / "leaderboard.ipynb"


def test_leaderboard_is_a_pandas_table(results):
    board = leaderboard(results)
    assert isinstance(board, pd.DataFrame)
    gold = board[(board["name"] == "gold") & (board["dataset"] == "amazon2014-beauty")].iloc[0]
    assert (gold["recall@10"], gold["recall@10 low"], gold["recall@10 high"]) == (0.75, 0.25, 1.0)
    assert gold["recall@10 tied"]
    assert (gold["family"], gold["train_seconds"], gold["seeds"]) == ("generative", 600.0, 1)
    assert board["recall@10 tied"].dtype == bool
    assert board.query("name == 'bronze'")["reason_missing"].item().startswith("out of memory")
    assert type(board.sort_values("ndcg@10").head(2)) is pd.DataFrame
    assert set(leaderboard(results, "ml-100k")["protocol"]) == {"full", "cand20"}
    with pytest.raises(InputError, match="Did you mean: ml-100k"):
        leaderboard(results, "ml-100")


def test_the_table_has_what_papers_print(results):
    board = leaderboard(results).set_index(["dataset", "name"])
    gold = board.loc["amazon2014-beauty", "gold"]
    printed = [gold[f"recall@10 {part}"] for part in ("published", "paper", "verdict")]
    assert printed == [0.0648, "EAGER-LLM, table 2", "higher"]
    assert pd.isna(board.loc[("amazon2014-beauty", "silver"), "recall@10 verdict"])


def test_notebooks_show_tables_whose_text_is_text(results):
    shown = leaderboard(results)._repr_html_()
    assert shown.count("<table>") == 3
    assert "MovieLens-100K · 20 candidates" in shown
    assert "<b>0.7500</b> <small>[0.2500, 1.0000]</small>" in shown
    assert "&lt;script&gt;alert(1)" in shown
    assert HOSTILE not in shown
    assert "Amazon 2014 Beauty" in repr(leaderboard(results))


def test_run_returns_the_standings_of_its_grid(stored, tmp_path):
    plain = tmp_path / "results"
    board = run(["popularity", {"method": "item_knn", "label": "knn"}], [stored], results=plain, jobs=1)
    assert set(board["label"]) == {"popularity", "knn"}
    assert board["recall@10"].between(0, 1).all()
    again = run(["popularity"], [stored], results=plain, jobs=1)
    assert list(again["label"]) == ["popularity"]  # of this grid alone
    assert again["runs"].item() == board.query("label == 'popularity'")["runs"].item()
    with pytest.raises(InputError, match="Did you mean: popularity"):
        run(["populartiy"], [stored], results=plain)


def test_a_search_and_the_rows_that_have_its_settings(stored, tmp_path):
    pytest.importorskip("optuna", reason="the extra `tune` is not installed")
    plain = tmp_path / "results"
    search = tune(["item_knn"], [stored], trials=2, settings={"item_knn": {"decay": 0.7}}, results=plain).iloc[0]
    assert (search["method"], search["dataset"], search["trials"]) == ("item_knn", stored, 2)
    assert search["best ndcg@10"] >= search["own ndcg@10"] > 0
    assert set(search["settings"]) == {"neighbours", "shrink", "decay"}
    assert (plain / "tuned.yaml").exists()
    row = run(["item_knn"], [stored], settings={"item_knn": search["settings"]}, results=plain, jobs=1).iloc[0]
    effort = [row[name] for name in ("search", "search_trials", "search_budget_trials", "search_seconds")]
    assert effort == [search["search"], 2, 2, pytest.approx(search["seconds"], abs=0.1)]
    with pytest.raises(InputError, match=r"^jobs is of engine ray"):
        tune(["item_knn"], [stored], jobs=2, results=plain)


@pytest.mark.parametrize("call", [run, tune])
def test_an_engine_is_known_and_ray_alone_has_an_address(call, tmp_path):
    with pytest.raises(InputError, match=r"Unknown engine 'rey'. Did you mean: ray"):
        call(["popularity"], ["ml-100k"], engine="rey", results=tmp_path)
    with pytest.raises(InputError, match=r"^address and resources are of engine ray"):
        call(["popularity"], ["ml-100k"], address="here:6379", results=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_engine_ray_gets_what_it_is_asked_for(stored, tmp_path, monkeypatch):
    """Ray itself is not started: a module in its engine's place runs the grid here."""
    asked = {}

    def run_on_ray(*arguments, **only_of_ray):
        asked.update(only_of_ray)
        return run_grid(*arguments)

    stand_in = type(sys)("genrec_bench.benchmark.ray_engine")
    stand_in.run_on_ray = run_on_ray
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    monkeypatch.setattr(engines, "find_spec", lambda name: name == "ray")
    given = {"address": "here:6379", "resources": {"popularity": {"cpus": 2}}}
    board = run(["popularity"], [stored], results=tmp_path, jobs=1, engine="ray", **given)
    assert asked == given
    assert board["recall@10"].item() > 0
    with pytest.raises(InputError, match=r"resources markov.…: that method is not part of this run"):
        run(["popularity"], [stored], results=tmp_path, engine="ray", resources={"markov": {"cpus": 2}})
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^engine ray needs Ray: pip install"):
        run(["popularity"], [stored], results=tmp_path, engine="ray")


def test_the_package_is_light_and_modules_keep_their_names():
    package = importlib.import_module("genrec_bench.benchmark")
    assert package.run is run
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing


def test_the_notebook_runs_and_was_run(tmp_path, monkeypatch, home):
    """Every cell runs; the committed file holds the outputs of such a run, and no error."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    committed = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert all(output.output_type != "error" for cell in code for output in cell.outputs)
    assert str(Path.home()) + "/" not in NOTEBOOK.read_text(encoding="utf-8")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    kernels = tmp_path / "jupyter" / "kernels" / "python3"
    kernels.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernels / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "python3", "language": "python"}))
    client = nbclient.NotebookClient(
        nbformat.read(NOTEBOOK, as_version=4), timeout=600, kernel_name="python3",
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
    )  # fmt: skip
    client.execute()
    fresh = [cell for cell in client.nb.cells if cell.cell_type == "code"]
    assert [bool(cell.outputs) for cell in fresh] == [bool(cell.outputs) for cell in code]
