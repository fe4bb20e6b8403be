"""The engine `ray`: cells as trials of Ray Tune, on one machine or a cluster of them.

    genrec-bench run SUITE.yaml --engine ray [--address HOST:6379]

Records are those of the local engine, in the same place. The results folder decides what is missing, so the same
command goes on after any fault; Ray's own experiment state is not used. A trial is a small process that watches the
cell's own one (`genrec_bench.benchmark.ray_worker`); several processes that train one cell are Ray Train's. A worker
that dies with its machine is started again elsewhere.
"""

import logging
import os
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune import TuneError
from ray.tune.schedulers import FIFOScheduler
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from genrec_bench.benchmark import desk as desks
from genrec_bench.benchmark.attempt import Job, Options, job_of
from genrec_bench.benchmark.desk import Desk
from genrec_bench.benchmark.ray_worker import CellTrial
from genrec_bench.benchmark.suite import Cell
from genrec_bench.datasets import store
from genrec_bench.datasets.errors import InputError, unknown
from genrec_bench.methods import registry
from genrec_bench.methods.base import Resources

if TYPE_CHECKING:
    from genrec_bench.benchmark.progress import Progress
    from genrec_bench.benchmark.runner import Grid, Outcome

RETRIES = 20  # of a trial whose worker or machine was lost: no fault of the cell's
LOST = "its worker was lost; it starts again from what came home"
LOOK_EVERY_S = 60.0  # between two looks whether the machines that there are now could hold what is left
WAIT_S = 15 * 60.0  # for a machine that could, once the last one is lost
WATCHER = {"memory": float(2**20)}  # of a trial whose processes have resources of their own: a trial must ask for some
QUIET = {  # Tune's own logs, files and network use, and Ray's guard of memory, none of which is wanted
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # it prints a box, whatever the verbosity
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_memory_monitor_refresh_ms": "0",  # it would end the watcher; the kernel ends the cell, which goes on with less
}


def run_on_ray(
    cells: Sequence[Cell],
    results: Path,
    progress: "Progress",
    time_budget_s: float | None = None,
    force: bool = False,
    jobs: int | None = None,
    keep_models: bool = False,
    address: str | None = None,
    resources: Mapping[str, Mapping[str, Any]] | None = None,
) -> "Outcome":
    """What `genrec_bench.benchmark.runner.run_grid` does, on the Ray at ``address``, or one of this machine's own.

    ``resources`` (method -> values of `Resources`) win over what a method declares. Raises InputError also where no
    Ray answers, or one of its machines has other versions than this one.
    """
    from genrec_bench.benchmark.runner import Grid, lay_out, stop_signals

    results = Path(results).absolute()
    laid_out = lay_out(cells, results, progress, keep_models)
    grid = Grid(results, progress, time_budget_s, force, 1, keep_models)
    grid.outcome.run_ids = [identity for _, identity, _ in laid_out]
    progress.start(len(cells))
    missing = [one for one in laid_out if not grid.counts(one[0], one[1])]
    if not missing:
        return grid.outcome
    options = Options(keep_models=keep_models, force=force, time_budget_s=time_budget_s)
    with stop_signals() as raise_if_stopped, progress, connected(address, missing) as plugins, open_desk(results) as at:
        asked = [ask(number, *one, resources or {}) for number, one in enumerate(missing)]
        watch = _Watch(grid, missing, raise_if_stopped)
        fitting = [pair for pair in asked if watch.fits(*pair)]
        run_trials(CellTrial, fitting, watch, at, options, plugins, jobs)
    return grid.outcome


@contextmanager
def connected(address: str | None, missing: Sequence[tuple[Cell, str, str]]) -> Iterator[list[str]]:
    """A Ray whose machines all have our versions and the cells' plugins; yields those plugins' paths.

    What then fails of Ray's own on this machine, such as to write on a full disk, is an InputError as well.
    """
    plugins = sorted({cell.plugin for cell, _, _ in missing if cell.plugin})
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith("ray://"):
        raise InputError(f"--address {address}: start the command on a machine of the cluster, and give HOST:6379")
    before, stops = ray.is_initialized(), signal.getsignal(signal.SIGTERM)
    if not before:
        try:
            own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except Exception as error:  # Ray raises bare ones, too, where its processes do not start
            raise InputError(f"No Ray to work with at '{address}': {_in_a_line(error)}") from error
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a lost worker is a line of ours, no traceback
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, stops)  # Ray's own would end the command at once, tidied up or not
    try:
        _refuse_strangers(plugins)
        yield plugins
    except (OSError, RayError, TuneError) as error:
        raise InputError(
            f"Ray cannot go on here, where it writes in {store.home() / 'ray'} and in its own folder (/tmp/ray, or "
            f"$RAY_TMPDIR): {_in_a_line(error)}; see to the disk, then run the same command again"
        ) from error
    finally:
        if not before:
            ray.shutdown()


def _in_a_line(error: Exception) -> str:
    """What an error of Ray's says, which may be pages; of the system's, the file as well."""
    return " ".join(str(error).split())[:400] or type(error).__name__


def _refuse_strangers(plugins: list[str]) -> None:
    """Raise InputError where a machine has other libraries, code or plugins: its results would not be ours."""
    here = desks.installed(plugins)
    look = ray.remote(num_cpus=0)(desks.installed)
    asked = {}
    for node in (one for one in ray.nodes() if one["Alive"]):
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, node {node['NodeID'][:8]})"
        asked[name] = look.options(scheduling_strategy=there).remote(plugins)
    for name, reference in asked.items():
        try:
            found = desks.disagreements(here, ray.get(reference, timeout=120))
        except RayError as error:
            found = f"genrec-bench does not start there: {str(error).strip().splitlines()[-1][:300]}"
        if found:
            raise InputError(f"Ray's machine {name} is refused: {found}. Install the same on all machines")


@contextmanager
def open_desk(results: Path) -> Iterator[Any]:
    """The actor that stands for this command's folders, on this machine."""
    mark = Path("ray") / uuid.uuid4().hex
    folder = store.home() / mark
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"Cannot write in {folder.parent}: {error.strerror}") from None
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(Desk).options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
    handle: Any = actor.remote(str(store.home()), str(results), str(mark))
    try:
        yield handle
    finally:
        ray.kill(handle)
        shutil.rmtree(folder, ignore_errors=True)


def ask(
    number: int, cell: Cell, identity: str, dataset_sha256: str, asked: Mapping[str, Mapping[str, Any]]
) -> tuple[Job, Resources]:
    """A cell as it travels, and what it asks for."""
    needs = needs_of(cell, asked)
    return job_of(number, cell, identity, dataset_sha256, needs), needs


def needs_of(cell: Cell, asked: Mapping[str, Mapping[str, Any]]) -> Resources:
    """What the method declares, or was ``asked`` to take instead; of GPUs nothing where the cluster has none."""
    method = registry.get(cell.method)
    values = {**asdict(method.resources(cell.config, cell.scale)), **asked.get(cell.method, {})}
    for name, value in values.items():
        if name not in Resources.__dataclass_fields__:
            raise unknown(f"resource of {cell.method}", name, Resources.__dataclass_fields__)
        if not isinstance(value, int | float) or value < 0 or (name in ("cpus", "processes") and not value):
            raise InputError(f"--resources {cell.method}.{name}={value}: expected a positive number")
    needs = Resources(**values)
    if needs.processes > 1 and not method.parallel:
        raise InputError(f"--resources {cell.method}.processes: {cell.method} trains in one process")
    return needs if ray.cluster_resources().get("GPU") else replace(needs, gpus=0.0)


def bundle_of(needs: Resources) -> dict[str, float]:
    """Resources of one process, as Ray names them."""
    memory = needs.memory_mib * 2**20
    bundle = {"CPU": float(needs.cpus), "GPU": float(needs.gpus), "memory": float(memory)}
    return {name: amount for name, amount in bundle.items() if amount}


def too_large(needs: Resources) -> str | None:
    """Why the machines that there are can never run this; None where they can."""
    wanted, machines = bundle_of(needs), [node["Resources"] for node in ray.nodes() if node["Alive"]]
    places = sum(
        int(min(one.get(name, 0) // amount for name, amount in wanted.items()) if wanted else needs.processes)
        for one in machines
    )
    if places >= needs.processes:
        return None
    largest = {name: max(one.get(name, 0) for one in machines) for name in wanted}
    texts = [", ".join(f"{name} {amount:g}" for name, amount in one.items()) for one in (wanted, largest)]
    if places:
        return f"there is room for {places} of its {needs.processes} processes, each of which asks for {texts[0]}"
    return f"no machine is large enough: it asks for {texts[0]}, at most there is {texts[1]}"


class Waiting:
    """What no machine can hold any more, and since when."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._looked = time.monotonic()
        self._since: dict[Resources, tuple[float, str]] = {}  # when it was first seen, and the reason that was told

    def in_vain(self, left: Iterable[tuple[Resources, str]]) -> dict[Resources, str]:
        """Of what is ``left``, and whose it is, that which has waited for too long, and why; looks once a minute.

        What runs needs no exception: its machine is there.
        """
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY_S:
            return {}
        self._looked = now
        names: dict[Resources, list[str]] = {}
        for needs, name in left:
            names.setdefault(needs, []).append(name)
        before, self._since = self._since, {}
        for needs, (first, *others) in names.items():
            begun, told = before.get(needs, (now, ""))
            reason = too_large(needs) or ""
            if reason != told:
                who = f"{first} and {len(others)} more" if others else first
                self._say(f"  {who}: " + (f"waits for a machine: {reason}" if reason else "a machine for it is there"))
            if reason:
                self._since[needs] = (begun, reason)
        return {
            needs: f"{reason}, for {WAIT_S / 60:g} minutes"
            for needs, (begun, reason) in self._since.items()
            if now - begun >= WAIT_S
        }


def run_trials(
    trainable: type[CellTrial],
    asked: Sequence[tuple[Job, Resources]],
    watch: "_Watch",
    desk: Any,
    options: Options,
    plugins: list[str],
    jobs: int | None,
) -> None:
    """All jobs as trials of one experiment; raises InputError for a fault of ours, Interrupted for a signal."""
    folder = store.home() / ray.get(desk.hello.remote())[1]
    bundles = {job.number: bundle_of(needs) for job, needs in asked}
    left = {job.number: job for job, _ in asked}
    watch.left = {job.number: needs for job, needs in asked}
    while left:
        space = [
            {"number": job.number, "bundle": bundles[job.number] if job.processes == 1 else WATCHER}
            for job in left.values()
        ]
        tuner = tune.Tuner(
            tune.with_parameters(
                trainable,
                jobs=left,
                bundles=bundles,
                desk=desk,
                options=options,
                installed=desks.installed(plugins),
            ),
            param_space={"job": tune.grid_search(space)},
            tune_config=tune.TuneConfig(
                scheduler=_InTurn(watch),
                reuse_actors=True,
                max_concurrent_trials=jobs,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=experiment(folder, watch, RETRIES),
        )
        tuner.fit()
        watch.raise_what_stopped_it()
        left = {number: left[number] for number in watch.given_up()}


def experiment(folder: Path, watch: Any, retries: int) -> tune.RunConfig:
    """How Tune keeps an experiment: under ``folder``, watched, silent, saving nothing of its trials (`CellTrial`)."""
    return tune.RunConfig(
        name=uuid.uuid4().hex,
        storage_path=str(folder),
        failure_config=tune.FailureConfig(max_failures=retries),
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        callbacks=[watch],
        stop=Stopper(watch),
        verbose=0,
    )


class _Watch(tune.Callback):
    """What the command does while trials run."""

    def __init__(
        self, grid: "Grid", missing: Sequence[tuple[Cell, str, str]], raise_if_stopped: Callable[[], None]
    ) -> None:
        self.grid, self.missing, self._raise_if_stopped = grid, missing, raise_if_stopped
        self.fault: str | None = None
        self.left: dict[int, Resources] = {}  # cells that are not closed
        self.waited: set[int] = set()  # cells that were closed because no machine could hold them
        self._waiting = Waiting(grid.progress.say)
        self._begun: set[int] = set()
        self._lost: dict[int, int] = {}  # cell -> how often its worker was lost
        self._given_up: list[int] = []

    def __deepcopy__(self, memo: Any) -> "_Watch":
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks, for a resumption that is not its business here

    def stops(self) -> bool:
        from genrec_bench.benchmark.runner import Interrupted

        try:
            self._raise_if_stopped()
        except Interrupted:
            return True
        return self.fault is not None

    def raise_what_stopped_it(self) -> None:
        self._raise_if_stopped()
        if self.fault is not None:
            raise InputError(self.fault)

    def fits(self, job: Job, needs: Resources) -> bool:
        """Whether the machines could ever run the cell; where they cannot, that is its reason."""
        reason = too_large(needs)
        if reason is not None:
            self._begin(job.number)
            self._close(job.number, reason)
        return reason is None

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        left = ((needs, str(self.missing[number][0])) for number, needs in self.left.items())
        for needs, reason in self._waiting.in_vain(left).items():
            for number in [number for number, one in self.left.items() if one == needs]:
                self._begin(number)
                self._close(number, reason)
                self.waited.add(number)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._begin(trial.config["job"]["number"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        number, news = result["number"], result["news"]
        cell, identity, _ = self.missing[number]
        self._begin(number)
        for event in news.events:
            self.grid.progress.event(cell, event)
        if news.fault is not None:
            self.fault = self.fault or news.fault
        elif news.already and news.reason is None:
            self.left.pop(number, None)
            self.grid.outcome.already += 1
            self.grid.progress.finished(cell, "already there")
        elif news.done:
            instead = None if news.run_id == identity else news.run_id
            if instead is not None:  # half the batch: another run
                self.grid.outcome.run_ids.append(instead)
            self._close(number, news.reason, instead)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        cell = self.missing[trial.config["job"]["number"]][0]
        self.grid.progress.say(f"  {cell}: {LOST}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number, lost = trial.config["job"]["number"], trial.num_failures
        self._lost[number] = self._lost.get(number, 0) + lost
        if self._lost[number] <= RETRIES:  # Tune gives a trial up at once whose worker dies between two cells
            self._given_up.append(number)
            return
        error = trial.get_error()
        last = " ".join(str(error).split())[-300:] if error else "no reason is known"
        self._close(number, f"its worker was lost {self._lost[number]} times: {last}")

    def given_up(self) -> list[int]:
        """Numbers of the cells that are to be tried in another experiment; each is told of once."""
        numbers, self._given_up = self._given_up, []
        return [number for number in numbers if number in self.left]

    def _begin(self, number: int) -> None:
        if number not in self._begun:
            self._begun.add(number)
            self.grid.progress.begin(self.missing[number][0])

    def _close(self, number: int, reason: str | None, instead: str | None = None) -> None:
        self.left.pop(number, None)
        try:
            self.grid.close(*self.missing[number], reason, instead)
        except InputError as error:
            self.fault = self.fault or str(error)


class _InTurn(FIFOScheduler):
    """First come, first served; takes the trials out whose cells have waited in vain."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._watch = watch

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        for trial in tune_controller.get_trials() if self._watch.waited else ():
            if trial.config["job"]["number"] in self._watch.waited and not trial.is_finished():
                tune_controller.stop_trial(trial)
        return super().choose_trial_to_run(tune_controller)


class Stopper(tune.Stopper):
    """Ends an experiment when its watch says so: by a signal, after its time, for a fault of our own folders."""

    def __init__(self, watch: Any = None) -> None:
        self._watch = watch

    def __deepcopy__(self, memo: Any) -> "Stopper":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Stopper, ()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._watch is not None and self._watch.stops()
