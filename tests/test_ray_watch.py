"""What the command does while Ray's trials run, seen without a Ray."""

from types import SimpleNamespace
from typing import Any

import pytest
from test_runner import grid_of
from test_tuning import levels

from genrec_bench.benchmark import records, tuning
from genrec_bench.benchmark.attempt import News
from genrec_bench.benchmark.progress import Progress
from genrec_bench.benchmark.runner import Grid, lay_out
from genrec_bench.benchmark.suite import make_suite
from genrec_bench.benchmark.tuning_records import Trial
from genrec_bench.datasets.errors import InputError
from genrec_bench.methods.base import Resources

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
from genrec_bench.benchmark import ray_engine, ray_search  # noqa: E402 - after the skip


def nothing() -> None:
    """No signal has come."""


def search(results, suite=None) -> ray_search._Watch:
    """The watch of a search that has not begun."""
    suite = suite or make_suite({"methods": ["item_knn"], "datasets": ["tiny"]})
    (study,) = tuning.tune(suite, {}, results, Progress(quiet=True), 0, None)
    study.trials = 9
    return ray_search._Watch(study, Progress(quiet=True), nothing, Resources())


def trial_of(name: str, values: dict[str, Any]) -> Any:
    """A trial of Tune's, as its callbacks see it."""
    return SimpleNamespace(trial_id=name, config=values, last_result={}, num_failures=1)


def hears(watch: ray_search._Watch, trial: Any, curve: list[float], news: News = News()) -> str:  # noqa: B008 - frozen
    """What becomes of a trial of which this is heard, in Tune's order: a last result passes the scheduler by."""
    result = {"curve": curve, "news": news}
    verdict = "STOP" if news.done else ray_search._Halving(watch).on_trial_result(None, trial, result)
    trial.last_result = result
    if verdict == "STOP":
        watch.on_trial_complete(0, [], trial)
    return verdict


def finished(number: int, level: float, curve: list[float]) -> Trial:
    return Trial(number=number, values={"level": level}, state="done", value=curve[-1], seconds=1.0, curve=curve)


def test_a_search_that_goes_on_judges_by_the_trials_of_before(stored, tmp_path):
    watch = search(tmp_path / "results", levels(tmp_path, "0"))
    watch.study.add(finished(0, 0.9, [0.9] * 9))
    good, bad, last = (trial_of(name, {"level": level}) for name, level in (("g", 0.9), ("b", 0.1), ("l", 0.2)))
    for trial in (good, bad, last):
        watch.on_trial_start(0, [], trial)
    assert hears(watch, bad, [0.1] * 2) == "CONTINUE"
    assert hears(watch, good, [0.9] * 3) == "CONTINUE"
    assert hears(watch, bad, [0.1] * 4) == "STOP"
    assert hears(watch, last, [0.2] * 9, News(done=True, value=0.2)) == "STOP"  # all of it was heard at once
    ended = [(one.values["level"], one.state, len(one.curve), one.reason) for one in watch.study.finished[1:]]
    said = "below the best third at validation 3"
    assert ended == [(0.1, "pruned", 3, said), (0.2, "pruned", 3, said)]


def test_trials_under_way_are_rivals_and_each_rung_is_judged_once(stored, tmp_path):
    watch = search(tmp_path / "results", levels(tmp_path, "0"))
    first, second = (trial_of(name, {"level": level}) for name, level in (("f", 0.2), ("s", 0.9)))
    for trial in (first, second):
        watch.on_trial_start(0, [], trial)
    assert hears(watch, first, [0.2] * 3) == "CONTINUE"  # nobody came before it
    assert hears(watch, second, [0.9] * 8) == "CONTINUE"
    assert hears(watch, first, [0.2] * 5) == "CONTINUE"  # it is past that rung
    assert hears(watch, second, [0.9] * 9) == "CONTINUE"
    assert hears(watch, first, [0.2] * 9) == "STOP"
    assert watch.study.finished[0].reason == "below the best third at validation 9"


def test_trials_under_way_are_gone_on_with_by_the_next_command(stored, tmp_path):
    watch = search(tmp_path)
    proposer = ray_search._Proposer(watch.study)
    trials = [trial_of(name, proposer.suggest(name)) for name in "abc"]
    for trial in trials:
        watch.on_trial_start(0, [], trial)
    hears(watch, trials[1], [], News(done=True, value=0.5))
    watch.on_trial_error(0, [], trials[2])  # its worker was lost, and Tune gives it up
    under_way = [trials[0].config, trials[2].config]
    assert watch.study.running == under_way
    study = search(tmp_path).study  # what another command reads
    assert [trial.values for trial in study.finished] == [trials[1].config]
    again = ray_search._Proposer(study)
    assert [again.suggest("d"), again.suggest("e")] == under_way
    assert again.suggest("f") not in [trial.config for trial in trials]


class Machines:
    """A clock, and what no machine can hold at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.lost = 0.0, dict[Resources, str]()
        monkeypatch.setattr(ray_engine, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(ray_engine, "too_large", self.lost.get)

    def after(self, seconds: float, watch: Any, lost: dict[Resources, str]) -> None:
        """What the watch sees so much later."""
        self.now += seconds
        self.lost.clear()
        self.lost.update(lost)
        watch.on_step_begin(0, [])


class Controller:
    """Tune's, as far as `_InTurn` asks it."""

    def __init__(self, trials: list[Any]) -> None:
        self.trials, self.stopped = trials, list[int]()

    def get_trials(self) -> list[Any]:
        return self.trials

    def stop_trial(self, trial: Any) -> None:
        trial.status = "TERMINATED"
        self.stopped.append(trial.config["job"]["number"])


def grid_trial(number: int, status: str) -> Any:
    trial = SimpleNamespace(config={"job": {"number": number}}, status=status, num_failures=1)
    trial.is_finished = lambda: trial.status == "TERMINATED"
    return trial


def test_cells_whose_last_machine_is_lost_wait_and_say_so(stored, tmp_path, monkeypatch, capsys):
    machines = Machines(monkeypatch)
    progress = Progress()
    missing = lay_out(grid_of(["popularity", "markov", "item_knn"]), tmp_path, progress, keep_models=False)
    watch = ray_engine._Watch(Grid(tmp_path, progress, None, False, 1, False), missing, nothing)
    small, large = Resources(), Resources(gpus=2.0)
    watch.left = {0: small, 1: large, 2: large}
    trials = [grid_trial(0, "RUNNING"), grid_trial(1, "PENDING"), grid_trial(2, "RUNNING")]  # the last is Ray Train's
    tune = Controller(trials)
    capsys.readouterr()
    reason = {large: "no machine is large enough: it asks for GPU 2, at most there is GPU 1"}

    machines.after(30, watch, reason)
    assert capsys.readouterr().err == ""  # it looks once a minute
    for _ in range(2):
        machines.after(60, watch, reason)
    said = f"  {missing[1][0]} and 1 more: waits for a machine: {reason[large]}\n"
    assert capsys.readouterr().err == said  # once
    machines.after(60, watch, {})  # one has joined
    assert capsys.readouterr().err == f"  {missing[1][0]} and 1 more: a machine for it is there\n"
    machines.after(60, watch, reason)
    machines.after(ray_engine.WAIT_S - 1, watch, reason)
    assert watch.left == {0: small, 1: large, 2: large}
    assert ray_engine._InTurn(watch).choose_trial_to_run(tune) is trials[1]
    watch.on_trial_error(0, [], trials[2])
    machines.after(60, watch, reason)
    assert watch.left == {0: small}
    assert watch.given_up() == []
    assert ray_engine._InTurn(watch).choose_trial_to_run(tune) is None
    assert tune.stopped == [1, 2]
    empty = {failure.method: failure.reason for failure in records.read_failures(tmp_path)[0]}
    assert empty == dict.fromkeys(("markov", "item_knn"), f"{reason[large]}, for 15 minutes")


def test_a_search_whose_last_machine_is_lost_ends(stored, tmp_path, monkeypatch):
    machines = Machines(monkeypatch)
    watch = search(tmp_path)
    reason = {Resources(): "no machine is large enough: it asks for CPU 1, at most there is CPU 0"}
    machines.after(60, watch, reason)
    machines.after(ray_engine.WAIT_S - 60, watch, reason)
    assert not watch.stops()
    machines.after(60, watch, reason)
    assert watch.stops()
    with pytest.raises(InputError, match=r"item_knn: .* at most there is CPU 0, for 15 minutes"):
        watch.close()


FULL = OSError(28, "No space left on device", "/home/of/the/command/ray/tuner.pkl")


@pytest.fixture
def no_ray(monkeypatch):
    """Nothing of Ray's starts."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray_engine, "_refuse_strangers", lambda plugins: None)


@pytest.mark.parametrize(
    "error", [FULL, ray.exceptions.OutOfDiskError(FULL.filename), ray.tune.TuneError(f"cannot write {FULL.filename}")]
)
def test_what_ray_cannot_write_is_one_message(home, no_ray, error):
    where = rf"Ray cannot go on here, where it writes in {home / 'ray'} and in its own folder .*{FULL.filename}"
    with pytest.raises(InputError, match=where), ray_engine.connected("local", []):
        raise error


@pytest.mark.parametrize("error", [FULL, Exception("The current node timed out during startup.")])
def test_a_ray_that_does_not_start_is_one_message(no_ray, monkeypatch, error):
    def init(**options: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "init", init)
    said = r"No Ray to work with at 'local': .*(tuner\.pkl|timed out during startup)"
    with pytest.raises(InputError, match=said), ray_engine.connected("local", []):
        pytest.fail("it went on")
