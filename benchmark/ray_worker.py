"""What the engine `ray` runs on a worker: a trial that watches a cell's process, or several that train together.

What a worker imports here is without torch: it only watches.
"""

import pickle
import platform
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import ray
from ray import train, tune
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from genrec_bench.benchmark import desk as desks
from genrec_bench.benchmark.attempt import CRASHES, Attempt, HomeFault, Job, News, Options, Worker, choose_home
from genrec_bench.benchmark.process import CellProcess, Work, take_over
from genrec_bench.benchmark.suite import smaller
from genrec_bench.datasets import store
from genrec_bench.datasets.errors import InputError
from genrec_bench.methods import distributed

STEP_S = 2.0  # between two words of a trial


class _Proxy:
    """The desk, asked as if it were here."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def ask(*arguments: Any) -> Any:
            try:
                return ray.get(getattr(self._handle, name).remote(*arguments))
            except RayTaskError as error:
                if isinstance(error.cause, InputError):
                    raise HomeFault(str(error.cause)) from None
                if isinstance(error.cause, OSError):
                    raise HomeFault(f"Cannot write where the command runs: {error.cause}") from None
                raise

        return ask


class CellTrial(tune.Trainable):
    """Watches one cell after another. Its result says what happened in the last seconds."""

    def setup(  # type: ignore[override]
        self,
        config: dict[str, Any],
        jobs: dict[int, Job],
        bundles: dict[int, dict[str, float]],
        desk: Any,
        options: Options,
        installed: dict[str, str],
    ) -> None:
        self.jobs, self.bundles, self.handle, self.options = jobs, bundles, desk, options
        self.desk: Any = _Proxy(desk)
        self.shared = choose_home(*self.desk.hello())
        plugins = [name.removeprefix("plugin ") for name in installed if name.startswith("plugin ")]
        # again: machines may have joined since the command looked at all
        self.refused = desks.disagreements(installed, desks.installed(plugins))
        self.attempt: Attempt | None = None
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self.number = new_config["job"]["number"]
        self.attempt = self.begin(self.jobs[self.number])
        return True

    def begin(self, job: Job) -> Attempt:
        return Attempt(job, self.desk, self.options, self.shared, self._start)

    def step(self) -> dict[str, Any]:
        assert self.attempt is not None
        if self.refused:
            news = News(done=True, fault=f"Ray's machine {platform.node()} is refused: {self.refused}")
        else:
            news = self.attempt.step(STEP_S)
        return {"number": self.number, "done": news.done, "news": news}

    def cleanup(self) -> None:
        if self.attempt is not None:
            self.attempt.end()
            self.attempt = None

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        raise AssertionError("Tune would save to a folder of the command's, which a worker may not see")

    def _start(self, work: Work, job: Job) -> Worker:
        if not job.gpus:  # on a cluster of somebody's Ray hides none
            work = replace(work, environment=work.environment | {"CUDA_VISIBLE_DEVICES": ""})
        if job.processes == 1:
            return CellProcess(work, import_main=False)
        return _Together(work, job, self.bundles[job.number], self.handle)

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        return tune.PlacementGroupFactory([config["job"]["bundle"]])


class _Together:
    """Several processes that train one cell."""

    signal: int | None = None

    def __init__(self, work: Work, job: Job, bundle: dict[str, float], desk: Any) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # whose home it is
        fit = ray.remote(num_cpus=0, max_retries=0)(_fit_together)
        self._reference = fit.options(scheduling_strategy=here).remote(work, job, bundle, desk)
        self._told: Callable[[], list[dict[str, Any]]] = lambda: _Proxy(desk).told(job.run_id)
        self._events: list[dict[str, Any]] = []

    def news(self, timeout: float = 0.0) -> tuple[str, Any] | None:
        ready, _ = ray.wait([self._reference], timeout=0.0 if self._events else timeout)
        self._events += self._told()  # after that: all has been said when it ends
        if self._events:
            return "event", self._events.pop(0)
        if not ready:
            return None
        try:
            kind, content = ray.get(self._reference)
        except RayError as error:
            return "dead", f"its processes ended: {str(error).strip().splitlines()[-1][:300]}"
        return kind, content

    def answer(self, value: Any) -> None:
        raise AssertionError("processes that train together ask for nothing")

    def end(self) -> None:
        ray.cancel(self._reference, force=True)


def _fit_together(work: Work, job: Job, bundle: dict[str, float], desk: Any) -> tuple[str, Any]:
    """Train one cell in ``job.processes`` processes, which the first one's record ends."""
    from ray.train.torch import TorchConfig, TorchTrainer

    folder = Path(work.environment["GENREC_BENCH_HOME"]) / "ray" / "together"
    trainer = TorchTrainer(
        cast(Any, _one_of_them),  # Ray hands back what it returns; its types say that it returns nothing
        train_loop_config={"work": work, "job": job, "desk": desk},
        torch_config=TorchConfig(backend=None if job.gpus else "gloo"),
        scaling_config=train.ScalingConfig(
            num_workers=job.processes, use_gpu=job.gpus > 0, resources_per_worker=bundle, placement_strategy="PACK"
        ),
        run_config=train.RunConfig(
            name=job.run_id,
            storage_path=str(folder),
            failure_config=train.FailureConfig(max_failures=CRASHES),
        ),
    )
    try:
        told: tuple[str, Any] | None = cast(Any, trainer.fit()).return_value  # the first process's
    finally:
        shutil.rmtree(folder / job.run_id, ignore_errors=True)
    return told or ("dead", "its processes said nothing")


def _one_of_them(config: dict[str, Any]) -> tuple[str, str | None]:
    """What each process does, and how it ended: a failure where one of them does not see the command's home."""
    from genrec_bench.benchmark.execute import MethodFault, execute

    work, job, desk = config["work"], config["job"], _Proxy(config["desk"])
    identity = job.smaller_run_id if work.less_memory else job.run_id
    if desk.ran_out(identity):
        return "memory", "out of memory"
    theirs, mark = desk.hello()
    sees = choose_home(theirs, mark)
    take_over({**work.environment, "GENREC_BENCH_HOME": str(store.home())})
    finished = store.home() / "ray" / "finished" / identity
    with distributed.joined():
        reason = distributed.agreed(None if sees else _apart(theirs))
        if reason is not None:
            return "failed", reason
        cell = pickle.loads(work.cell)
        cell = (smaller(cell) or cell) if work.less_memory else cell
        try:
            execute(cell, finished, lambda event: desk.tell(job.run_id, event), work.threads, work.keep_model)
        except MethodFault as error:
            reason = str(error)
        except MemoryError:
            desk.run_out(identity)
            raise  # the others may wait for this one in vain: Ray Train starts all of them again
        reason = distributed.agreed(reason)
    kind = "done" if reason is None else "failed"
    if distributed.rank() == 0 and kind == "done":
        desk.deliver(job.dataset, job.method, identity, desks.read_tree(finished))
        shutil.rmtree(finished, ignore_errors=True)
    return kind, reason


def _apart(theirs: str) -> str:
    """Why this machine cannot take part in what several processes do."""
    return (
        f"its {distributed.world_size()} processes need one folder, and machine {platform.node()} works in "
        f"{store.home()}, not in the command's {theirs}: start its Ray with $GENREC_BENCH_HOME in a folder that the "
        "machines share, or ask for one process"
    )
