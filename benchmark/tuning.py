"""Searching a method's settings on validation: the same trials and the same time for every method, and a record of it.

    genrec-bench tune --method sasrec --method tiger --dataset ml-100k --trials 20 --time-budget 30m

The first trial has the method's own settings; Optuna's TPE proposes the others from the method's ``search_space``, and
successive halving ends those that fall behind (Li et al., MLSys 2020, arXiv 1810.05934; the rule of Ray's ASHA). A
trial trains and validates: it never reads a test target. Each trial's seed is drawn from the study's seed and the
trial's number, so a study that was killed goes on to the trials of an undisturbed one. Trials that were under way go on
from their training states.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from filelock import Timeout

from genrec_bench.benchmark import records, storage
from genrec_bench.benchmark.attempt import Attempt, News, Options, job_of
from genrec_bench.benchmark.desk import Desk
from genrec_bench.benchmark.execute import protocol_of, run_id
from genrec_bench.benchmark.process import CellProcess, usable_cores
from genrec_bench.benchmark.progress import Progress
from genrec_bench.benchmark.pruning import curve_of, fallen_behind, why
from genrec_bench.benchmark.runner import lock_of, stop_signals
from genrec_bench.benchmark.suite import Cell, Suite, cells, merged, refuse_unused, value_at
from genrec_bench.benchmark.tuning_records import Trial, Tuning, read
from genrec_bench.datasets import store
from genrec_bench.datasets.errors import InputError
from genrec_bench.methods import registry
from genrec_bench.methods.artefacts import canonical_hash
from genrec_bench.methods.base import Resources

COUNT_EVERY_S = 15.0  # between two notes of the time that a search has taken
STARTUP = 8  # trials at random before TPE learns from them
Values = dict[str, Any]  # setting (dots lead into groups) -> value


@dataclass
class Study:
    """A search that is under way."""

    cell: Cell  # with the settings that are given
    fixed: Values
    dataset_sha256: str
    seed: int
    engine: str
    trials: int
    budget_s: float | None
    results: Path
    space: dict[str, list[Any] | tuple[float, float]] = field(default_factory=dict)
    finished: list[Trial] = field(default_factory=list)
    running: list[Values] = field(default_factory=list)  # of trials under way, or that are to be gone on with
    spent_s: float = 0.0
    _since: float = 0.0  # when time was counted last
    _offered: tuple[int, float] = (0, 0.0)  # trials and seconds of the commands before

    def __post_init__(self) -> None:
        self.space = _space(self.cell, self.fixed)
        self.go_on()
        self._reload()

    @property
    def identity(self) -> str:
        """Hash of what determines the search; not of how long it is, so that a longer one goes on from a shorter."""
        cell = self.cell
        return canonical_hash(
            {
                "run": run_id(cell, self.dataset_sha256),
                "space": {key: list(values) for key, values in self.space.items()},
                "seed": self.seed,
                "engine": self.engine,
            }
        )[:16]

    @property
    def path(self) -> Path:
        return records.run_folder(self.results, self.cell.dataset, self.cell.method, "tuning").with_name(
            f"tuning-{self.identity}.json"
        )

    @property
    def over(self) -> bool:
        """Whether trials, time or settings are used up."""
        return len(self.finished) >= self.trials or self.left_s <= 0 or len(self.finished) >= self.size

    @property
    def left_s(self) -> float:
        """Seconds until the time is up."""
        return math.inf if self.budget_s is None else self.budget_s - self.spent_s - self._uncounted_s

    @property
    def _uncounted_s(self) -> float:
        return time.monotonic() - self._since

    @property
    def size(self) -> float:
        """Different settings that there are."""
        ranges = any(isinstance(values, tuple) for values in self.space.values())
        return math.inf if ranges else math.prod(len(values) for values in self.space.values())

    @property
    def defaults(self) -> Values:
        """The settings of the first trial."""
        return {key: value_at(self.cell.config.model_dump(mode="json"), key) for key in self.space}

    @property
    def best(self) -> Trial | None:
        """The best finished trial; of equals the first."""
        return _best(self.finished)

    def cell_of(self, values: Values) -> Cell:
        """The cell with a trial's settings."""
        return with_values(self.cell, values)

    def accepts(self, values: Values) -> bool:
        """Whether the method's config takes these together."""
        try:
            self.cell_of(values)
        except InputError:
            return False
        return True

    def go_on(self) -> None:
        """Wall-clock time counts from now on."""
        self._since = time.monotonic()

    @contextmanager
    def held(self, progress: Progress, raise_if_stopped: Callable[[], None]) -> Iterator[None]:
        """The study for this command alone, as its record tells it then; an equal command waits meanwhile."""
        lock = lock_of(f"tuning-{canonical_hash([self.identity, str(self.results)])[:16]}")
        waits = False
        while not lock.is_locked:
            raise_if_stopped()
            try:
                lock.acquire(timeout=0.2)
            except Timeout:
                if not waits:
                    progress.say(f"{self.cell.label} · {self.cell.dataset}: waits for another command's same search")
                waits = True
        try:
            self._reload()
            yield
        finally:
            lock.release()

    def _reload(self) -> None:
        """Take what its record tells."""
        if self.path.exists():
            before = read(self.path)
            self.finished, self.spent_s = list(before.trials), before.spent_seconds
            self.running = [values for values in before.running if self.accepts(values)]
            self._offered = before.budget_trials, before.budget_seconds or math.inf

    def offer(self) -> None:
        """Note what may be spent, where it is more than what was offered before: also if all trials are there."""
        trials, seconds = self._offered
        if self.path.exists() and (self.trials > trials or (self.budget_s or math.inf) > seconds):
            self._write(self.finished, self.running)

    def begin(self, values: Values) -> None:
        """Note a trial that is under way, on disk first; InputError where it cannot be."""
        if values not in self.running:
            self._write(self.finished, [*self.running, values])

    def add(self, trial: Trial) -> None:
        """Keep a trial that is over, on disk first; InputError where it cannot be."""
        self._write([*self.finished, trial], [values for values in self.running if values != trial.values])

    def count(self, every_s: float = 0.0) -> None:
        """Write down how much time has passed, where that is at least so much: a kill does not give it back."""
        if self._uncounted_s >= every_s:
            self._write(self.finished, self.running)

    def _write(self, finished: list[Trial], running: list[Values]) -> None:
        self.spent_s += self._uncounted_s
        self.go_on()
        content = self.record(finished, running).model_dump(mode="json", by_alias=True)
        with storage.writing(self.results) as unfinished:
            storage.write_bytes(unfinished / self.path.name, (json.dumps(content, indent=1) + "\n").encode())
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(unfinished / self.path.name, self.path)
        self.finished, self.running = finished, running

    def record(self, trials: list[Trial], running: list[Values]) -> Tuning:
        """What is written of the study with these trials."""
        best, cell = _best(trials), self.cell
        return Tuning(
            study=self.identity,
            method=cell.method,
            method_version=registry.get(cell.method).version,
            plugin_sha256=cell.plugin_sha256,
            dataset=cell.dataset,
            dataset_sha256=self.dataset_sha256,
            protocol=protocol_of(cell),
            tier=cell.scale,
            seed=self.seed,
            metric=cell.rules.selection_metric,
            engine=self.engine,
            fixed=self.fixed,
            space={key: list(values) for key, values in self.space.items()},
            ranges=[key for key, values in self.space.items() if isinstance(values, tuple)],
            budget_trials=self.trials,
            budget_seconds=self.budget_s,
            spent_seconds=round(self.spent_s, 1),
            best=None if best is None else best.number,
            best_value=None if best is None else best.value,
            config=None if best is None else self.cell_of(best.values).config.model_dump(mode="json"),
            trials=trials,
            running=running,
        )


def _best(trials: Sequence[Trial]) -> Trial | None:
    done = [trial for trial in trials if trial.value is not None and trial.state == "done"]
    return max(done, key=lambda trial: (trial.value, -trial.number), default=None)


def tune(
    suite: Suite,
    settings: dict[str, Values],
    results: Path,
    progress: Progress,
    trials: int,
    budget_s: float | None,
    seed: int = 0,
    jobs: int | None = None,
    on_ray: dict[str, Any] | None = None,
) -> list[Study]:
    """Search for each method of ``suite`` on each of its data sets; ``settings`` are kept fixed.

    Every study has the same ``trials`` and ``budget_s`` of wall-clock time. Raises InputError, or Interrupted.
    """
    optuna_quietly()  # missing, it is so before anything is trained
    results = Path(results).absolute()
    records.check_writable(results)
    grid = cells(_one_row_each(suite), settings)
    if on_ray is not None:
        refuse_unused(on_ray.get("resources", {}), suite, "--resources")
    if not grid:
        raise InputError("Nothing to search: none of these methods takes part in this protocol")
    studies = []
    for cell in grid:
        progress.say(f"data set {cell.dataset}")
        sha256 = store.load(cell.dataset).sha256
        entry = next(one for one in suite.methods if one.method == cell.method)
        fixed = merged(entry.config, settings.get(cell.method, {}))
        engine = "local" if on_ray is None else "ray"
        study = Study(cell, fixed, sha256, seed, engine, trials, budget_s, results)
        if study.space:
            studies.append(study)
        else:
            progress.say(f"left out: {cell.method} has nothing to search")
    if not studies:
        raise InputError(f"{cell.method} has nothing to search: see genrec-bench methods {cell.method}")
    with stop_signals() as raise_if_stopped:
        for study in studies:
            with study.held(progress, raise_if_stopped):
                study.go_on()
                study.offer()
                progress.say(
                    f"{study.cell.label} · {study.cell.dataset}: {len(study.finished)} of {trials} trials are there"
                )
                if on_ray is None:
                    _search(study, progress, raise_if_stopped)
                else:
                    from genrec_bench.benchmark.ray_search import search_on_ray

                    search_on_ray(study, progress, raise_if_stopped, jobs=jobs, **on_ray)
    return studies


def _one_row_each(suite: Suite) -> Suite:
    """The suite with one cell of each method; InputError where it says more than one way to run it."""
    if len(suite.protocols) > 1:
        raise InputError(f"One protocol is searched at a time: add --protocol {suite.protocols[0]}")
    rows = [entry.model_copy(update={"seeds": None}) for entry in suite.methods]
    for name in (row.method for row in rows):
        if len(labels := [row.label or name for row in rows if row.method == name]) > 1:
            raise InputError(f"One row of {name} is searched at a time: add --method {' or '.join(map(repr, labels))}")
    return suite.model_copy(update={"methods": rows, "seeds": [0]})


def _search(study: Study, progress: Progress, raise_if_stopped: Callable[[], None]) -> None:
    """Trials one after the other, in this machine's processes."""
    desk = Desk(str(store.home()), str(study.results), "ray")
    while not study.over:
        number = len(study.finished)
        values = study.running[0] if study.running else suggest(study, number)
        if values is None:
            return
        study.begin(values)
        cell = study.cell_of(values)
        identity = run_id(cell, study.dataset_sha256)
        needs = Resources(cpus=usable_cores())
        job = job_of(number, cell, identity, study.dataset_sha256, needs, search=True)
        attempt: Any = Attempt(job, desk, Options(search=True), True, lambda work, job: CellProcess(work))  # type: ignore[arg-type]
        try:
            trial = _watch(study, attempt, number, values, raise_if_stopped)
        finally:
            attempt.end()
            study.count()
        if trial is None:  # the time is up; its training state stays, for a longer search
            return
        study.add(trial)
        forget(identity)
        tell(progress, study, trial)


def forget(identity: str) -> bool:
    """Remove the training state of a trial that is over; False where a process still has it, or another one already."""
    try:
        with lock_of(identity).acquire(blocking=False):
            shutil.rmtree(store.home() / "runs" / identity, ignore_errors=True)
    except Timeout:
        return False
    return True


def tell(progress: Progress, study: Study, trial: Trial) -> None:
    """One line about a trial that has ended."""
    best = max(trial.curve, default=0.0) if trial.value is None else trial.value
    reached = None if trial.state == "failed" else f"{study.cell.rules.selection_metric} {best:.4f}"
    what = ", ".join(filter(None, (trial.state, reached, trial.reason)))
    place = f"[{len(study.finished)}/{study.trials}] {study.cell.label}"
    progress.say(f"{place}: {what}, {trial.seconds:.0f} s")


def _watch(
    study: Study, attempt: Attempt, number: int, values: Values, raise_if_stopped: Callable[[], None]
) -> Trial | None:
    """A trial to its end; None where the study's time ends first."""
    started, curve = time.monotonic(), list[float]()
    while True:
        raise_if_stopped()
        news = attempt.step(0.5)
        if news.fault is not None:
            raise InputError(news.fault)
        if news.events or news.done:
            curve = curve_of(attempt.run_id)
        seconds = time.monotonic() - started
        # also of a trial that is through: how much of it was seen at a time says nothing about it
        if rung := fallen_behind(curve, [trial.curve for trial in study.finished]):
            return pruned(number, values, curve[:rung], seconds)
        if news.done:
            return ended(number, values, news, curve, seconds)
        if study.left_s <= 0:
            return None
        study.count(COUNT_EVERY_S)


def ended(number: int, values: Values, news: News, curve: list[float], seconds: float) -> Trial:
    """A trial that came to its own end."""
    state: Literal["done", "failed"] = "failed" if news.value is None else "done"
    return Trial(
        number=number, values=values, state=state, value=news.value, reason=news.reason, seconds=seconds, curve=curve
    )


def pruned(number: int, values: Values, curve: list[float], seconds: float) -> Trial:
    """A trial that fell behind."""
    return Trial(
        number=number, values=values, state="pruned", value=None, reason=why(curve), seconds=seconds, curve=curve
    )


def suggest(study: Study, number: int) -> Values | None:
    """The settings of trial ``number``, from those before it; None where TPE finds no new ones."""
    if number == 0:
        return study.defaults
    optuna = optuna_quietly()
    seen = [trial.values for trial in study.finished]
    space = distributions(study)
    for again in range(50):
        seed = int(canonical_hash([study.seed, number, again])[:8], 16)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)
        search = optuna.create_study(direction="maximize", sampler=sampler)
        for trial in study.finished:
            search.add_trial(_as_optuna(optuna, trial, space))
        values = dict(search.ask(space).params)
        if values not in seen and study.accepts(values):
            return values
    return None


def optuna_quietly() -> Any:
    """The library, its log switched off; InputError where it is missing."""
    try:
        import optuna
    except ImportError:
        raise InputError("genrec-bench tune needs Optuna: pip install 'genrec-bench[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def distributions(study: Study) -> dict[str, Any]:
    """The space in Optuna's words."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    return {
        key: FloatDistribution(*values, log=True) if isinstance(values, tuple) else CategoricalDistribution(values)
        for key, values in study.space.items()
    }


def _as_optuna(optuna: Any, trial: Trial, space: dict[str, Any]) -> Any:
    states = optuna.trial.TrialState
    state = {"done": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[trial.state]
    return optuna.trial.create_trial(
        state=state,
        value=trial.value if trial.state == "done" else None,
        params=trial.values,
        distributions=space,
        intermediate_values=dict(enumerate(trial.curve)),
    )


def _space(cell: Cell, fixed: Values) -> dict[str, list[Any] | tuple[float, float]]:
    """What is searched: the method's space without fixed settings, its own values always among the choices."""
    found: dict[str, list[Any] | tuple[float, float]] = {}
    for key, values in type(cell.config).search_space.items():
        if _is_fixed(key, fixed):
            continue
        try:
            own = value_at(cell.config.model_dump(mode="json"), key)
        except (KeyError, TypeError):  # a part that is left out, or has no such setting
            continue
        if isinstance(values, tuple):
            if own is None or own <= 0:
                raise InputError(
                    f"{cell.method}: {key}={own} is not on the logarithmic scale {values[0]:g} .. {values[1]:g} that a "
                    f"search tries: begin with a value above 0, or keep it fixed with --set {cell.method}.{key}=..."
                )
            found[key] = (min(values[0], own), max(values[1], own))
        else:
            found[key] = list(values) if own in values else [*values, own]
    return found


def _is_fixed(key: str, fixed: Values) -> bool:
    value: Any = fixed
    for part in key.split("."):
        if not isinstance(value, dict):  # a whole group was given by its name
            return True
        if part not in value:
            return False
        value = value[part]
    return True


def nested(values: Values) -> Values:
    """``{"lm.settings.dropout": 0.1}`` -> ``{"lm": {"settings": {"dropout": 0.1}}}``"""
    found: Values = {}
    for key, value in values.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        found = merged(found, value)
    return found


def with_values(cell: Cell, values: Values) -> Cell:
    """A cell with some settings changed."""
    config = registry.configure(cell.method, merged(cell.config.model_dump(mode="json"), nested(values)))
    kept = {field: content for field, content in (cell.contents or {}).items() if field not in values}
    return replace(cell, config=config, contents=config.contents() | kept)
