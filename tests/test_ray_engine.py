"""The engine `ray` on two workers: the records of the local engine, whatever happens to a cell or its worker."""

import json
import os
import re
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from test_runner import SASREC, files_of, grid_of, plugin
from test_runner import run as run_locally
from test_tuning import levels, poisoned

from genrec_bench.benchmark import desk, records, tuning
from genrec_bench.benchmark.attempt import News
from genrec_bench.benchmark.progress import Progress
from genrec_bench.benchmark.runner import Interrupted, stop_signals
from genrec_bench.benchmark.suite import cells, make_suite
from genrec_bench.benchmark.tuning_records import Trial
from genrec_bench.datasets import store
from genrec_bench.datasets.errors import InputError

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
from optuna.trial import TrialState  # noqa: E402 - after the skip

from genrec_bench.benchmark import ray_engine, ray_search  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def two_workers() -> Iterator[None]:
    """One machine, two CPUs; its workers take the home of whoever asks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("GENREC_BENCH_HOME", raising=False)
        for name, value in ray_engine.QUIET.items():
            patch.setenv(name, value)
        ray.init("local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()


def run(results: Path, methods, budget: float | None = None, resources=None, keep_models=False, **more):
    grid = grid_of(methods, **more)
    return ray_engine.run_on_ray(
        grid, results, Progress(quiet=True), budget, jobs=2, keep_models=keep_models, resources=resources
    )


def contents(results: Path) -> dict[str, object]:
    """What a grid's records say of results: no times, no machine."""
    found = {}
    for record in records.read_all(results)[0]:
        folder = records.run_folder(results, record.dataset.name, record.method, record.run_id)
        kept = record.model_dump(include={"metrics", "list_metrics", "slices", "validation", "config", "overrides"})
        lists = records.read_rankings(folder)[1].items.tolist() if record.protocol.name == "full" else None
        found[record.run_id] = (kept, records.read_ranks(folder)[1].tolist(), lists)
    return found


def test_the_records_are_those_of_the_local_engine(stored, tmp_path, home, capsys):
    grid = {"methods": ["popularity", SASREC], "protocols": ["full", "cand20"], "seeds": [0, 1]}
    on_ray = run(tmp_path / "ray", **grid, keep_models=True)
    assert capsys.readouterr().out == ""  # where tables go
    local = run_locally(tmp_path / "local", **grid)
    assert (on_ray.done, on_ray.already, on_ray.failed) == (8, 0, {})
    assert on_ray.run_ids == local.run_ids
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    names = [set(files_of(tmp_path / engine)) for engine in ("ray", "local")]
    assert names[0] == names[1]
    (candidates,) = (name for name in names[0] if "candidates-" in name)
    assert (tmp_path / "ray" / candidates).read_bytes() == (tmp_path / "local" / candidates).read_bytes()
    assert {path.name for path in (home / "models").iterdir()} == set(on_ray.run_ids)
    assert not [path for path in (home / "runs").iterdir() if path.suffix != ".lock"]
    assert not list((home / "ray").rglob("*.json"))  # neither records nor Tune's own state

    before = files_of(tmp_path / "ray")
    (damaged,) = [path for path in (tmp_path / "ray").rglob("run.json") if on_ray.run_ids[3] in str(path)]
    damaged.unlink()
    again = run(tmp_path / "ray", **grid)
    assert (again.done, again.already, again.run_ids) == (1, 7, on_ray.run_ids)
    changed = {name for name, file in files_of(tmp_path / "ray").items() if file != before[name]}
    assert all(on_ray.run_ids[3] in name for name in changed)


FAULTS = {
    "raises": "def fit(self, train, context): raise KeyError('lost')",
    "shoots": "def fit(self, train, context): os.kill(os.getpid(), signal.SIGKILL)",
    "hangs": "def fit(self, train, context): time.sleep(600)",
    "eats": "def fit(self, train, context): self.popularity = np.ones(10**15)",
    "stumbles": """
def fit(self, train, context):
    state = context.checkpoint.load()
    if state is None:
        context.checkpoint.save({"weights": torch.rand(train.num_items)})
        os.kill(os.getpid(), signal.SIGSEGV)
    self.popularity = state["weights"].numpy()
""",
    "loses": """
def fit(self, train, context):
    super().fit(train, context)
    flag = FLAG
    if not os.path.exists(flag):
        Path(flag).touch()
        parent = int(Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(parent, signal.SIGKILL)
        time.sleep(600)
""",
}
HUNGRY = """
from typing import ClassVar

from genrec_bench.methods.base import MethodConfig
from genrec_bench.methods.popularity import Popularity
from genrec_bench.methods.registry import register


class HungryConfig(MethodConfig):
    size: int = 8
    batch_field: ClassVar = "size"


@register("hungry")
class Hungry(Popularity):
    Config = HungryConfig

    def fit(self, train, context):
        if self.config.size > 4:
            raise MemoryError
        super().fit(train, context)
"""


def test_whatever_happens_to_a_cell_the_others_go_on(stored, tmp_path):
    bodies = {name: body.replace("FLAG", repr(str(tmp_path / "flag"))) for name, body in FAULTS.items()}
    plugins = [plugin(tmp_path, name, body) for name, body in bodies.items()]
    (tmp_path / "hungry.py").write_text(HUNGRY)
    results = tmp_path / "results"
    methods = [*FAULTS, "hungry", "popularity"]
    outcome = run(results, methods, budget=12.0, plugins=[*plugins, str(tmp_path / "hungry.py")])
    reasons = {failure.method: failure.reason for failure in records.read_failures(results)[0]}
    done = {record.method: record for record in records.read_all(results)[0]}
    assert set(done) == {"stumbles", "loses", "hungry", "popularity"}
    assert set(reasons) == {"raises", "shoots", "hangs", "eats", "hungry"}
    assert re.match(r"fit raised KeyError: 'lost' \(raises\.py:\d+\)", reasons["raises"])
    assert reasons["shoots"] == "its process ended by signal 9, 3 times"
    assert reasons["hangs"] == "stopped after its time budget of 12 s"
    assert reasons["eats"] == "out of memory"  # it has no batch to halve
    assert done["hungry"].config == {"size": 4}
    assert reasons["hungry"] == f"out of memory; run {done['hungry'].run_id} computes half the batch at a time"
    assert done["hungry"].run_id in outcome.run_ids
    assert set(outcome.failed.values()) == set(reasons.values())


SMALL = {"architecture": "decoder_only", "index": {"builder": "random"}, "epochs": 2, "dropout": 0.0, "bf16": False}


def test_two_processes_train_one_cell(stored, tmp_path):
    """Ray Train's TorchTrainer over gloo; the record stands beside one of one process."""
    tiger = {"method": "tiger", "config": {**SMALL, "layers": 1, "width": 32, "batch_tokens": 500}}
    outcome = run(tmp_path / "two", [tiger], resources={"tiger": {"processes": 2}})
    assert outcome.failed == {}
    run_locally(tmp_path / "one", [tiger])
    (one,), (two,) = (records.read_all(tmp_path / name)[0] for name in ("one", "two"))
    assert one.run_id == two.run_id
    assert two.cost.hardware == f"2 x {one.cost.hardware}"
    for name, metric in one.metrics.items():
        assert two.metrics[name].mean == pytest.approx(metric.mean, abs=0.02), name  # a near tie may fall the other way


def test_another_version_is_refused_by_name(stored, tmp_path, monkeypatch):
    here = desk.installed([])
    monkeypatch.setattr(desk, "_versions", lambda: {**here, "torch": "0.9"})
    expected = rf"Ray's machine .* is refused: torch is {re.escape(here['torch'])} there, 0.9 here\. Install the same"
    with pytest.raises(InputError, match=expected):
        run(tmp_path, ["popularity"])
    assert not list(tmp_path.rglob("*.json"))


def test_a_signal_stops_the_command_as_without_ray(monkeypatch):
    def init(**options):
        signal.signal(signal.SIGTERM, lambda number, frame: pytest.fail("Ray's own"))

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray_engine, "_refuse_strangers", lambda plugins: None)
    with stop_signals() as raise_if_stopped, ray_engine.connected(None, []):
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"):
            raise_if_stopped()


def test_a_missing_plugin_is_named(tmp_path):
    here = {"torch": "2.0", "plugin /a/mine.py": "0123"}
    assert desk.disagreements(here, desk.installed(["/a/mine.py"]) | {"torch": "2.0"}) == (
        "plugin /a/mine.py is missing there, 0123 here"
    )


def test_a_cell_that_no_machine_can_hold(stored, tmp_path):
    outcome = run(tmp_path, ["popularity", "markov"], resources={"markov": {"cpus": 64}})
    assert outcome.done == 1
    (reason,) = outcome.failed.values()
    assert reason == "no machine is large enough: it asks for CPU 64, at most there is CPU 2"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine=rey"], "Unknown engine 'rey'. Did you mean: ray"),
        (["--address=a:1"], "--address and --resources are of --engine ray"),
        (["--engine=ray", "--resources=popularity.gpu=1"], "Unknown resource of popularity 'gpu'. Did you mean: gpus"),
        (["--engine=ray", "--resources=popularty.cpus=1"], "Unknown method 'popularty'. Did you mean: popularity"),
        (["--engine=ray", "--resources=markov.cpus=1"], "--resources markov.…: that method is not part of this run"),
        (["--engine=ray", "--resources=popularity.cpus=0"], "popularity.cpus=0: expected a positive number"),
        (["--engine=ray", "--resources=popularity.processes=2"], "popularity trains in one process"),
        (["--engine=ray", "--address=ray://a:1"], "start the command on a machine of the cluster"),
    ],
)
def test_wrong_options(command, stored, tmp_path, options, message):
    code, _, said = command("run", "--method=popularity", "--dataset=tiny", "--results", tmp_path, *options)
    assert code == 2
    assert message in said
    assert "Traceback" not in said


def test_resources_of_another_method_are_refused_by_a_search(stored, tmp_path):
    suite = make_suite({"methods": ["item_knn"], "datasets": ["tiny"]})
    with pytest.raises(InputError, match=r"--resources markov\.…: that method is not part of this run"):
        tuning.tune(suite, {}, tmp_path, Progress(), 2, None, on_ray={"resources": {"markov": {"cpus": 1}}})


def test_results_that_cannot_be_written(stored, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"Cannot write records in .*file.*give --results a writable folder"):
        run(tmp_path / "file" / "results", ["popularity"])


def test_a_disk_that_is_full_for_tune(stored, tmp_path, monkeypatch):
    """Files may grow to nothing from the time on when Tune is to write its own."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(*arguments):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        return experiment(*arguments)

    experiment = ray_engine.experiment
    with monkeypatch.context() as patch:
        patch.setattr(ray_engine, "experiment", full)
        try:
            with pytest.raises(InputError, match=r"Ray cannot go on here, where it writes in .*File too large"):
                run(tmp_path, ["popularity"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.rglob("run.json"))
    assert run(tmp_path, ["popularity"]).done == 1


def test_processes_that_there_is_no_room_for(stored, tmp_path):
    tiger = {"method": "tiger", "config": {"epochs": 1}}
    outcome = run(tmp_path, ["popularity", tiger], resources={"tiger": {"processes": 4}})
    assert outcome.done == 1
    (reason,) = outcome.failed.values()
    assert reason == "there is room for 2 of its 4 processes, each of which asks for CPU 1"


LOSES_ITS_WORKER = """
from pathlib import Path
import psutil
from genrec_bench.methods.popularity import Popularity
from genrec_bench.methods.registry import register

@register("unlucky")
class Unlucky(Popularity):
    def fit(self, train, context):
        if not Path({flag!r}).exists():
            Path({flag!r}).touch()
            above = psutil.Process().parents()
            next(one for one in above if "".join(one.cmdline()).startswith("ray::")).kill()
        super().fit(train, context)
"""


def test_a_lost_worker_is_a_line_and_no_traceback(stored, tmp_path, capfd):
    plugin = tmp_path / "unlucky.py"
    plugin.write_text(LOSES_ITS_WORKER.format(flag=str(tmp_path / "flag")))
    grid = grid_of(["unlucky"], plugins=[str(plugin)])
    assert ray_engine.run_on_ray(grid, tmp_path / "results", Progress(), jobs=2).done == 1
    said = capfd.readouterr().err
    assert said.count(ray_engine.LOST) == 1
    assert "Traceback" not in said


def test_a_cell_that_tune_gives_up_at_once_is_tried_again(stored, tmp_path, monkeypatch):
    """As where a worker dies between two cells: Tune's own retries are passed over."""
    original = ray_engine._Watch.on_trial_result
    lost = []

    def result_of_a_lost_worker(self, iteration, trials, trial, result, **info):
        if result["number"] == 0 and result["done"] and len(lost) < 2:
            lost.append(trial.trial_id)
            trial.run_metadata.num_failures += 1
            self.on_trial_error(iteration, trials, trial)
        else:
            original(self, iteration, trials, trial, result, **info)

    monkeypatch.setattr(ray_engine._Watch, "on_trial_result", result_of_a_lost_worker)
    outcome = run(tmp_path, ["popularity", "markov"])
    assert len(set(lost)) == 2  # trials of two experiments
    assert outcome.failed == {}
    assert len(records.read_all(tmp_path)[0]) == 2


def test_only_three_files_know_ray():
    sources = [path for room in ("benchmark", "methods", "datasets") for path in (ROOT / room).rglob("*.py")]
    found = {path.name for path in sources if re.search(r"^\s*(import|from) ray\b", path.read_text(), re.MULTILINE)}
    assert found == {"ray_engine.py", "ray_search.py", "ray_worker.py"}


def test_a_search_on_ray(stored, tmp_path):
    suite = make_suite({"methods": ["item_knn"], "datasets": ["tiny"]})
    for trials, there in ((3, 3), (5, 5)):  # the second goes on from the first
        (study,) = tuning.tune(suite, {}, tmp_path, Progress(quiet=True), trials, 120.0, jobs=2, on_ray={})
        assert len(study.finished) == there
    (path,) = (tmp_path / "tiny" / "item_knn").glob("tuning-*.json")
    record = json.loads(path.read_text())
    assert record["engine"] == "ray"
    own = {"neighbours": 200, "shrink": 10.0, "decay": 0.5}
    assert own in [trial["values"] for trial in record["trials"]]
    assert [trial["number"] for trial in record["trials"]] == [0, 1, 2, 3, 4]
    assert {trial["state"] for trial in record["trials"]} == {"done"}
    assert record["best_value"] == max(trial["value"] for trial in record["trials"])
    assert cells(suite)[0].config.model_dump(mode="json").keys() == record["config"].keys()


def test_a_search_on_ray_tries_no_settings_twice(stored, tmp_path):
    suite = make_suite({"methods": ["item_knn"], "datasets": ["tiny"]})
    fixed = {"item_knn": {"shrink": 10.0, "decay": 0.5}}
    (study,) = tuning.tune(suite, fixed, tmp_path, Progress(quiet=True), 20, 120.0, jobs=2, on_ray={})
    (choices,) = study.space.values()
    assert sorted(trial.values["neighbours"] for trial in study.finished) == sorted(choices)


def test_what_a_search_on_ray_learns_from(stored, tmp_path):
    """A failed trial has no value, whatever its last validation was; one whose worker was lost is tried again."""
    suite = make_suite({"methods": ["item_knn"], "datasets": ["tiny"]})
    (study,) = tuning.tune(suite, {}, tmp_path, Progress(quiet=True), 0, None)
    proposer = ray_search._Proposer(study)
    values = [proposer.suggest(name) for name in "abc"]
    for name, news in (("a", News(done=True, value=0.5)), ("b", News(done=True, reason="fit raised X")), ("c", News())):
        proposer.on_trial_complete(name, {"value": 0.5, "news": news})
    assert [one.state.name for one in proposer._ot_study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]

    states = ("done", "failed", "pruned")
    study.finished = [
        Trial(number=n, values=values[n], state=state, value=0.5 if n == 0 else None, seconds=1.0, curve=[0.2, 0.4])
        for n, state in enumerate(states)
    ]
    other = {**values[0], "shrink": 3.0}
    study.running = [other]
    proposer = ray_search._Proposer(study)
    assert sorted(one.value for one in proposer._ot_study.get_trials(states=[TrialState.COMPLETE])) == [0.4, 0.5]
    assert proposer.suggest("d") == other
    study.finished, study.running = study.finished[1:], []  # a record of before that named none under way
    assert ray_search._Proposer(study).suggest("e") == study.defaults


def test_a_trial_that_tune_gives_up_at_once_is_tried_again(stored, tmp_path, monkeypatch):
    original = ray_search._Watch.on_trial_complete
    lost = []

    def complete_of_a_lost_worker(self, iteration, trials, trial, **info):
        if not lost:
            lost.append(dict(trial.config))
            trial.run_metadata.num_failures += 1
            self.on_trial_error(iteration, trials, trial)
        else:
            original(self, iteration, trials, trial, **info)

    monkeypatch.setattr(ray_search._Watch, "on_trial_complete", complete_of_a_lost_worker)
    suite = make_suite({"methods": ["item_knn"], "datasets": ["tiny"]})
    (study,) = tuning.tune(suite, {}, tmp_path, Progress(quiet=True), 2, 120.0, jobs=1, on_ray={})
    assert [trial.state for trial in study.finished] == ["done", "done"]
    assert lost[0] in [trial.values for trial in study.finished]


def test_a_search_on_ray_ends_trials_that_fall_behind(stored, tmp_path, capsys):
    suite = levels(tmp_path, "0.6")
    (study,) = tuning.tune(suite, {}, tmp_path / "results", Progress(), 5, None, jobs=2, on_ray={})
    states = {trial.values["level"]: trial.state for trial in study.finished}
    assert states[0.9] == "done"
    assert "pruned" in (states[0.1], states[0.2])
    said = capsys.readouterr().err
    for trial in study.finished:
        if trial.state == "pruned":
            assert 3 <= len(trial.curve) < 9
            assert trial.reason == "below the best third at validation 3"
            assert f"levels: pruned, ndcg@10 {trial.values['level']:.4f}, {trial.reason}, " in said
    times: dict[str, list[float]] = {}
    for level, at in map(str.split, (tmp_path / "epochs").read_text().splitlines()):
        times.setdefault(level, []).append(float(at))
    (_, end), (begin, _), *_ = sorted((min(told), max(told)) for told in times.values())
    assert begin < end  # two at a time


def test_a_search_on_ray_goes_on_with_what_was_under_way(stored, tmp_path, monkeypatch):
    suite, results = levels(tmp_path, "1"), tmp_path / "results"
    with monkeypatch.context() as patch:
        patch.setattr(ray_search._Watch, "stops", lambda self: len(self.study.running) == 2)
        (study,) = tuning.tune(suite, {}, results, Progress(quiet=True), 2, None, jobs=2, on_ray={})
    assert (study.finished, len(study.running)) == ([], 2)
    (again,) = tuning.tune(suite, {}, results, Progress(quiet=True), 2, None, jobs=1, on_ray={})
    assert [trial.values for trial in again.finished] == study.running
    assert again.running == []


def test_a_search_on_ray_reads_validation_only(stored, tiny, tmp_path):
    """With every test target poisoned, no settings have another value."""
    suite = make_suite({"methods": ["item_knn"], "datasets": ["tiny"]})
    fixed = {"item_knn": {"shrink": 10.0, "decay": 0.5}}
    found = []
    for data in (tiny, poisoned(tiny)):
        store.save(data)
        (study,) = tuning.tune(suite, fixed, tmp_path, Progress(quiet=True), 20, 120.0, jobs=2, on_ray={})
        assert len(study.finished) == study.size
        found.append((study.dataset_sha256, {one.values["neighbours"]: one.value for one in study.finished}))
    (clean, before), (dirty, after) = found
    assert clean != dirty
    assert before == after
