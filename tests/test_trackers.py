"""Trackers: what they are told, that a failing one costs nothing, and that nothing leaves the machine unless asked."""

import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from genrec_bench.benchmark import records, trackers
from genrec_bench.benchmark.progress import Progress
from genrec_bench.benchmark.runner import Grid, run_grid
from genrec_bench.benchmark.suite import Cell, cells, make_suite
from genrec_bench.benchmark.trackers import Tracked
from genrec_bench.datasets.errors import InputError


class Told:
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.news: list[tuple[Any, ...]] = []

    def begin(self, cell: Cell) -> None:
        self.news.append(("begin", cell.label))

    def log(self, cell: Cell, step: int, values: Any) -> None:
        self.news.append(("log", cell.label, step, dict(values)))

    def end(self, cell: Cell, record: Any, reason: str | None) -> None:
        self.news.append(("end", cell.label, record and record.metrics["ndcg@10"].mean, reason))


def grid(stored: str) -> list[Cell]:
    small = {"method": "sasrec", "config": {"epochs": 2, "dim": 8, "blocks": 1}}
    return cells(make_suite({"methods": ["popularity", small], "datasets": [stored]}))


def test_trackers_hear_the_curve_and_the_result(stored, tmp_path):
    told = Told()
    progress = Tracked(True, [("told", told)], tmp_path)
    outcome = run_grid(grid(stored), tmp_path, progress, jobs=1)
    assert outcome.done == 2
    means = {record.label: record.metrics["ndcg@10"].mean for record in records.read_all(tmp_path)[0]}
    for label in ("popularity", "sasrec"):
        mine = [one for one in told.news if one[1] == label]
        assert mine[0] == ("begin", label)
        assert mine[-1] == ("end", label, means[label], None)
    steps = [one[2] for one in told.news if one[:2] == ("log", "sasrec") and "loss" in one[3]]
    assert steps == sorted(steps)
    assert len(steps) == 2
    told.news.clear()
    run_grid(grid(stored), tmp_path, progress, jobs=1)
    assert told.news == []  # all there already
    (events,) = tmp_path.glob("*/sasrec/*/events.jsonl")
    assert [json.loads(line) for line in events.read_text().splitlines()]


def test_a_tracker_that_fails_is_given_up_and_the_grid_goes_on(stored, tmp_path, capsys):
    class Broken(Told):
        def log(self, cell: Cell, step: int, values: Any) -> None:
            raise ConnectionError("no route\nto host")

    fine = Told()
    outcome = run_grid(grid(stored), tmp_path, Tracked(False, [("broken", Broken()), ("fine", fine)], tmp_path), jobs=1)
    assert outcome.done == 2
    assert capsys.readouterr().err.count("tracker broken given up: ConnectionError: no route to host") == 1
    assert [one[0] for one in fine.news].count("end") == 2


def test_what_is_unknown_or_missing_is_said_before_anything_runs(tmp_path, monkeypatch, command):
    with pytest.raises(InputError, match="Did you mean: wandb"):
        trackers.progress(True, ["wandbd"], tmp_path)
    for name, module in (("mlflow", "mlflow.tracking"), ("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(InputError, match=f"pip install '?{name}"):
            trackers.progress(True, [name], tmp_path)
    code, _, err = command("run", "--method=popularity", "--dataset=ml-100k", "--track=wandb")
    assert code == 2
    assert "pip install 'wandb>=0.19.10'" in err
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(__version__="0.19.9rc1"))
    with pytest.raises(InputError, match=r"wandb needs 0\.19\.10 or later, not 0\.19\.9rc1"):
        trackers.progress(True, ["wandb"], tmp_path)


def tell(tracker: trackers.Tracker, cell: Cell, record: Any) -> None:
    tracker.begin(cell)
    tracker.log(cell, 3, {"loss": 1.5, "valid ndcg@10": 0.25})
    tracker.end(cell, record, None if record else "out of memory")


def test_tensorboard_files_hold_the_curve(stored, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    cell = grid(stored)[1]
    record = SimpleNamespace(metrics={"ndcg@10": SimpleNamespace(mean=0.125)})
    name, tracker = trackers._open("tensorboard", tmp_path)
    assert name == "tensorboard"
    tell(tracker, cell, record)
    (folder,) = (tmp_path / ".trackers" / "tensorboard" / "tiny" / "full" / "tiny").iterdir()
    assert folder.name.startswith("sasrec-seed0-")
    read = events.EventAccumulator(str(folder))
    read.Reload()
    assert [(one.step, one.value) for one in read.Scalars("loss")] == [(3, 1.5)]
    assert read.Scalars("test/ndcg@10")[0].value == 0.125


def test_no_two_runs_share_a_folder_of_tensorboard(stored):
    """Tier, sampler and settings are parts of a run: a second one must not go on with the first one's curve."""

    def of(method: Any = "sasrec", **suite: Any) -> str:
        (cell,) = cells(make_suite({"methods": [method], "datasets": [stored], "protocols": ["cand20"], **suite}))
        return trackers._slug(cell)

    bce = {"method": "sasrec", "label": "sasrec", "config": {"loss": "bce"}}
    found = [of(), of(scale="base"), of(exclude="window"), of(bce), of(seeds=[1])]
    assert len(set(found)) == 5
    assert len({folder.rpartition("-")[2] for folder in found}) == 5  # the run ids
    assert found[2].startswith("tiny/cand20-window/tiny/sasrec-seed0-")
    assert of() == found[0]


def test_a_run_that_took_the_cells_place_gives_its_test_metrics(stored, tmp_path):
    """Half the batch after running out of memory is another run id; the curve that was told belongs to it."""
    whole, half = (
        cells(make_suite({"methods": [{"method": "sasrec", "config": small}], "datasets": [stored]}))[0]
        for small in (
            {"epochs": 1, "dim": 8, "blocks": 1},
            {"epochs": 1, "dim": 8, "blocks": 1, "batch_positions": 512},
        )
    )
    (identity,) = run_grid([half], tmp_path, Progress(quiet=True), jobs=1).run_ids
    told = Told()
    progress = Tracked(True, [("told", told)], tmp_path)
    progress.begin(whole)
    reason = f"out of memory; run {identity} computes half the batch at a time"
    Grid(tmp_path, progress, None, False, 1, False).close(whole, "0" * 16, "00ff", reason, identity)
    (record,), _ = records.read_all(tmp_path)
    assert told.news[-1] == ("end", "sasrec", record.metrics["ndcg@10"].mean, reason)
    progress.begin(whole)
    Grid(tmp_path, progress, None, False, 1, False).close(whole, "0" * 16, "00ff", "it crashed")
    assert told.news[-1] == ("end", "sasrec", None, "it crashed")


def test_mlflow_and_wandb_stay_on_this_machine_unless_asked(stored, tmp_path, monkeypatch):
    """Against stand-ins with the libraries' own signatures: what is called, where it would write."""
    called: list[tuple[Any, ...]] = []

    class MlflowClient:
        def __init__(self, tracking_uri: str) -> None:
            called.append(("uri", tracking_uri))

        def get_experiment_by_name(self, name: str) -> None:
            return None

        def create_experiment(self, name: str) -> str:
            return "7"

        def create_run(self, experiment_id: str, run_name: str) -> Any:
            return SimpleNamespace(info=SimpleNamespace(run_id=f"run of {experiment_id}"))

        def log_param(self, run_id: str, key: str, value: Any) -> None:
            called.append(("param", key, value))

        def log_metric(self, run_id: str, key: str, value: float, step: int) -> None:
            assert all(letter.isalnum() or letter in "_-. /" for letter in key)  # MLflow's rule
            called.append(("metric", run_id, key, value, step))

        def set_tag(self, run_id: str, key: str, value: str) -> None:
            called.append(("tag", key, value))

        def set_terminated(self, run_id: str, status: str) -> None:
            called.append(("status", status))

    class Run:
        summary: dict[str, float] = {}  # noqa: RUF012

        def log(self, values: Any) -> None:
            called.append(("log", values))

        def finish(self, exit_code: int) -> None:
            called.append(("finish", exit_code))

    def init(**options: Any) -> Run:
        called.append(("init", options["mode"], options["dir"]))
        return Run()

    mlflow, wandb = ModuleType("mlflow.tracking"), ModuleType("wandb")
    mlflow.MlflowClient, wandb.init, wandb.__version__ = MlflowClient, init, "0.31.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", ModuleType("mlflow"))
    monkeypatch.setitem(sys.modules, "mlflow.tracking", mlflow)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "")  # restored after what follows
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY")
    cell = grid(stored)[1]
    tell(trackers._open("mlflow", tmp_path)[1], cell, None)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert called[0] == ("uri", f"sqlite:///{tmp_path / '.trackers' / 'mlflow.db'}")
    assert ("param", "config.dim", "8") in called
    assert ("metric", "run of 7", "valid ndcg/10", 0.25, 3) in called
    assert called[-2:] == [("tag", "reason", "out of memory"), ("status", "FAILED")]
    called.clear()
    tell(trackers._open("wandb", tmp_path)[1], cell, None)
    assert called == [
        ("init", "offline", str(tmp_path / ".trackers" / "wandb")),
        ("log", {"loss": 1.5, "valid ndcg@10": 0.25, "epoch": 3}),
        ("finish", 1),
    ]
    called.clear()
    tell(trackers._open("wandb=online", tmp_path)[1], cell, None)
    tell(trackers._open("mlflow=http://host:5000", Path("unused"))[1], cell, None)
    assert called[0] == ("init", "online", None)
    assert ("uri", "http://host:5000") in called
