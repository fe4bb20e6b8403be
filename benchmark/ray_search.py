"""`genrec-bench tune` on Ray: Tune proposes by OptunaSearch, and several trials run at a time.

Which trials are under way when one is proposed depends on the clock, so unlike a search in one process this one is not
repeated trial by trial; its record is the same, it goes on from it, and trials end by the same rule.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search.optuna import OptunaSearch

from genrec_bench.benchmark import desk as desks
from genrec_bench.benchmark import tuning
from genrec_bench.benchmark.attempt import Attempt, News, Options, job_of
from genrec_bench.benchmark.execute import run_id
from genrec_bench.benchmark.progress import Progress
from genrec_bench.benchmark.pruning import curve_of, fallen_behind
from genrec_bench.benchmark.ray_engine import (
    LOST,
    Waiting,
    bundle_of,
    connected,
    experiment,
    needs_of,
    open_desk,
    too_large,
)
from genrec_bench.benchmark.ray_worker import CellTrial
from genrec_bench.benchmark.tuning import Study
from genrec_bench.benchmark.tuning_records import Trial
from genrec_bench.datasets import store
from genrec_bench.datasets.errors import InputError
from genrec_bench.methods.base import Resources

VALUE = "value"
RETRIES = 3  # of a trial whose worker or machine was lost


def search_on_ray(
    study: Study,
    progress: Progress,
    raise_if_stopped: Callable[[], None],
    jobs: int | None = None,
    address: str | None = None,
    resources: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """What is left of a study, ``jobs`` trials at a time (default: as many as there is room for)."""
    tuning.optuna_quietly()
    if study.over:
        return
    missing = [(study.cell, study.identity, study.dataset_sha256)]
    with connected(address, missing) as plugins, open_desk(study.results) as at:
        needs = needs_of(study.cell, resources or {})
        if needs.processes > 1:
            raise InputError(f"--resources {study.cell.method}.processes: a search trains in one process")
        if (reason := too_large(needs)) is not None:
            raise InputError(f"{study.cell.method}: {reason}")
        trainable = tune.with_resources(
            tune.with_parameters(
                SearchTrial,
                cell=study.cell,
                dataset_sha256=study.dataset_sha256,
                needs=needs,
                desk=at,
                options=Options(search=True, time_budget_s=study.budget_s),
                installed=desks.installed(plugins),
            ),
            tune.PlacementGroupFactory([bundle_of(needs)]),
        )
        watch = _Watch(study, progress, raise_if_stopped, needs)
        study.go_on()  # Ray's own start is not the search's
        folder = store.home() / ray.get(at.hello.remote())[1]
        while True:
            _fit(trainable, watch, jobs, folder)
            if study.over or not study.running or watch.stops():  # running: Tune has given them up
                break
        watch.close()


def _fit(trainable: Any, watch: "_Watch", jobs: int | None, folder: Path) -> None:
    """What is left of the study as one experiment."""
    study = watch.study
    tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric=VALUE,
            mode="max",
            search_alg=_Proposer(study),
            scheduler=_Halving(watch),
            num_samples=int(min(study.trials, study.size)) - len(study.finished),
            max_concurrent_trials=jobs,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=experiment(folder, watch, RETRIES),
    ).fit()


class _Proposer(OptunaSearch):
    """OptunaSearch that knows the trials of before, begins with those that were under way, and repeats none."""

    def __init__(self, study: Study) -> None:
        # of a trial that fell behind, what it had reached: it was no better than that
        reached = [(trial, max(trial.curve)) for trial in study.finished if trial.state == "pruned"]
        known = reached + [(trial, trial.value) for trial in study.finished if trial.value is not None]
        super().__init__(
            tuning.distributions(study),
            metric=VALUE,
            mode="max",
            seed=study.seed + len(study.finished),  # not the proposals of before
            points_to_evaluate=[trial.values for trial, _ in known] or None,
            evaluated_rewards=[value for _, value in known] or None,
        )
        self._study = study
        self._proposed = [trial.values for trial in study.finished]
        waiting: Any = self._ot_study
        for values in (*study.running, study.defaults):  # the method's own settings, unless they are through
            waiting.enqueue_trial(values)

    def suggest(self, trial_id: str) -> Any:
        from optuna.trial import TrialState

        study: Any = self._ot_study
        for _ in range(50):
            values: Any = super().suggest(trial_id)
            if values not in self._proposed and self._study.accepts(values):
                self._proposed.append(values)
                return values
            study.tell(self._ot_trials.pop(trial_id), state=TrialState.FAIL)
        return self.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        news: News | None = (result or {}).get("news")
        failed = news is not None and news.done and news.value is None  # what its last validation was says nothing
        super().on_trial_complete(trial_id, None if failed else result, error or failed)


class _Halving(FIFOScheduler):
    """Ends the trials that fall behind."""

    def __init__(self, watch: "_Watch") -> None:
        super().__init__()
        self._watch = watch

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return self.STOP if self._watch.rung_of_end(trial.trial_id, result["curve"]) else self.CONTINUE


class SearchTrial(CellTrial):
    """Trains and validates one config after another. Reads the method to make its config, so it has its libraries."""

    def setup(  # type: ignore[override]
        self,
        config: dict[str, Any],
        cell: Any,
        dataset_sha256: str,
        needs: Resources,
        desk: Any,
        options: Options,
        installed: dict[str, str],
    ) -> None:
        self.cell, self.dataset_sha256, self.needs = cell, dataset_sha256, needs
        super().setup(config, {}, {}, desk, options, installed)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self.number, self.curve = 0, list[float]()
        cell = tuning.with_values(self.cell, new_config)
        identity = run_id(cell, self.dataset_sha256)
        job = job_of(0, cell, identity, self.dataset_sha256, self.needs, search=True)
        self.attempt = Attempt(job, self.desk, self.options, self.shared, self._start)
        return True

    def cleanup(self) -> None:
        attempt = self.attempt
        super().cleanup()
        if attempt is not None and not self.shared:  # what is needed again has been carried home
            tuning.forget(attempt.run_id)

    def step(self) -> dict[str, Any]:
        result = super().step()
        news: News = result["news"]
        assert self.attempt is not None
        if news.events or news.done:
            self.curve = curve_of(self.attempt.run_id)
        last = self.curve[-1] if self.curve else 0.0  # 0: Optuna wants a number before the first validation, too
        value = last if news.value is None else news.value
        return {**result, "curve": list(self.curve), VALUE: value}


class _Watch(tune.Callback):
    """Writes down what becomes of each trial."""

    def __init__(
        self, study: Study, progress: Progress, raise_if_stopped: Callable[[], None], needs: Resources
    ) -> None:
        self.study, self.progress, self._raise_if_stopped, self._needs = study, progress, raise_if_stopped, needs
        self._waiting = Waiting(progress.say)
        self.fault: str | None = None
        self._begun: dict[str, float] = {}
        self._curves: dict[str, list[float]] = {}  # of trials under way, as far as they have been judged
        self._ends: dict[str, int] = {}  # trial -> the rung at which it fell behind
        self._lost: dict[str, int] = {}  # run id of a trial -> how often its worker was lost
        self._over: set[str] = set()  # run ids of trials whose training state is to go

    def __deepcopy__(self, memo: Any) -> "_Watch":
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def stops(self) -> bool:
        from genrec_bench.benchmark.runner import Interrupted

        try:
            self._raise_if_stopped()
        except Interrupted:
            return True
        return self.fault is not None or self.study.left_s <= 0

    def close(self) -> None:
        """Count the rest of the time; raise what ended the search before its end."""
        self._forget()
        self.study.count()
        self._raise_if_stopped()
        if self.fault is not None:
            raise InputError(self.fault)

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        for reason in self._waiting.in_vain([(self._needs, self.study.cell.label)]).values():
            self.fault = self.fault or f"{self.study.cell.method}: {reason}"

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._forget()
        self._begun.setdefault(trial.trial_id, time.monotonic())
        try:
            self.study.begin(dict(trial.config))
        except InputError as error:
            self.fault = self.fault or str(error)

    def rung_of_end(self, trial_id: str, curve: list[float]) -> int:
        """The rung at which a trial fell behind those that are finished or under way, judged once at each; 0: none."""
        if trial_id not in self._ends:
            others = [trial.curve for trial in self.study.finished]
            others += [other for one, other in self._curves.items() if one != trial_id]
            rung = fallen_behind(curve, others, judged=len(self._curves.get(trial_id, [])))
            self._curves[trial_id] = curve
            if rung:
                self._ends[trial_id] = rung
        return self._ends.get(trial_id, 0)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        try:
            self.study.count(tuning.COUNT_EVERY_S)
        except InputError as error:
            self.fault = self.fault or str(error)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result or {}
        news: News | None = result.get("news")
        if news is None or trial.trial_id not in self._begun:  # a trial of before, which is only retold
            return
        if news.fault is not None:
            self.fault = self.fault or news.fault
            return
        number, seconds = len(self.study.finished), time.monotonic() - self._begun[trial.trial_id]
        values, curve = dict(trial.config), list(result.get("curve", []))
        # also of a trial that is through: Tune does not ask about its last result
        rung = self.rung_of_end(trial.trial_id, curve) if news.done else self._ends.get(trial.trial_id, 0)
        self._curves.pop(trial.trial_id, None)
        if rung:
            self._add(tuning.pruned(number, values, curve[:rung], seconds))
        elif news.done:
            self._add(tuning.ended(number, values, news, curve, seconds))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.progress.say(f"  {self.study.cell.label} {trial.config}: {LOST}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._curves.pop(trial.trial_id, None)
        identity = run_id(self.study.cell_of(trial.config), self.study.dataset_sha256)
        self._lost[identity] = self._lost.get(identity, 0) + trial.num_failures
        if self._lost[identity] <= RETRIES:  # Tune gives a trial up at once whose worker dies between two trials
            return  # it stays among the study's running ones, with which the next experiment begins
        reason = f"its worker was lost {self._lost[identity]} times"
        seconds = time.monotonic() - self._begun.get(trial.trial_id, time.monotonic())
        self._add(
            Trial(
                number=len(self.study.finished), values=dict(trial.config), state="failed", value=None, reason=reason,
                seconds=seconds, curve=[],
            )
        )  # fmt: skip

    def _add(self, trial: Trial) -> None:
        try:
            self.study.add(trial)
        except InputError as error:  # Tune would take it for a fault of the trial's
            self.fault = self.fault or str(error)
        else:
            self._over.add(run_id(self.study.cell_of(trial.values), self.study.dataset_sha256))
            self._forget()
            tuning.tell(self.progress, self.study, trial)

    def _forget(self) -> None:
        """Remove the training states of trials that are over, once no process has them any more."""
        self._over -= {identity for identity in self._over if tuning.forget(identity)}
