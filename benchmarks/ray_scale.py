"""Whether a large grid keeps a cluster busy, and the command's memory flat: a simulated one, cells that sleep.

    .venv/bin/python benchmarks/ray_scale.py [--nodes 8] [--gpus 8] [--cells 1000] [--seconds 20]

``ray.cluster_utils`` starts that many raylets on this machine, each with fake GPUs; a cell asks for one GPU and sleeps.
Everything else is the engine's own: trials, desk, records excepted. Utilisation is (the seconds that cells ask to
sleep) / (GPUs x wall time from the first cell's start to the last one's end, its start on a busy machine included);
memory is the command's resident set over the run. Limits: all cells end, the GPUs are at work 90 % of the time; exit
code 1 otherwise. A watcher is a Python process of about 130 MiB: 64 take 9 GiB.
"""

import argparse
import os
import random
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import ray
from limits import Limit, judged
from ray.cluster_utils import Cluster

from genrec_bench.benchmark.attempt import Attempt, Job, News, Options
from genrec_bench.benchmark.progress import Progress
from genrec_bench.benchmark.ray_engine import QUIET, _Watch, open_desk, run_trials
from genrec_bench.benchmark.ray_worker import CellTrial
from genrec_bench.methods.base import Resources

UTILISATION = 90.0  # per cent


class Asleep(Attempt):
    """A cell that sleeps for as long as its name says."""

    def step(self, seconds: float) -> News:
        self._began = self._began or time.time()
        end = self._began + float(self.job.name)
        time.sleep(max(min(seconds, end - time.time()), 0.0))
        if time.time() < end:
            return News()
        return News(done=True, run_id=self.job.run_id, events=[{"began": self._began, "ended": time.time()}])


class SleepingTrial(CellTrial):
    def begin(self, job: Job) -> Attempt:
        return Asleep(job, self.desk, self.options, self.shared, self._start)


class Count(_Watch):
    """Counts instead of recording."""

    def __init__(self) -> None:
        super().__init__(cast(Any, SimpleNamespace(progress=Progress())), [], lambda: None)
        self.spans: dict[int, tuple[float, float]] = {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        pass

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        pass

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        for event in result["news"].events:
            self.spans[result["number"]] = (event["began"], event["ended"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--gpus", type=int, default=8, help="of a node")
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20.0, help="a cell sleeps for half to one and a half of these")
    options = parser.parse_args()
    os.environ.update(QUIET)
    rng = random.Random(0)
    asked = []
    for number in range(options.cells):
        name = f"{options.seconds * rng.uniform(0.5, 1.5):.2f}"
        job = Job(
            number=number, cell=b"", name=name, dataset="none", dataset_sha256="", method="none",
            run_id=f"{number:016x}", smaller_run_id=None, threads=1, processes=1, gpus=1.0,
        )  # fmt: skip
        asked.append((job, Resources(cpus=1, gpus=1)))
    memory: list[tuple[float, int]] = []
    over = threading.Event()

    def watch_memory() -> None:
        while not over.wait(1.0):
            memory.append((time.time(), psutil.Process().memory_info().rss))

    with tempfile.TemporaryDirectory(prefix="ray-scale-") as folder:
        os.environ["GENREC_BENCH_HOME"] = folder
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        for _ in range(options.nodes):
            cluster.add_node(num_cpus=options.gpus, num_gpus=options.gpus)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        threading.Thread(target=watch_memory, daemon=True).start()
        count = Count()
        with open_desk(Path(folder) / "results") as desk:
            run_trials(SleepingTrial, asked, count, desk, Options(), [], None)
        over.set()
        ray.shutdown()
        cluster.shutdown()
    slept = sum(float(job.name) for job, _ in asked if job.number in count.spans)
    wall = max(end for _, end in count.spans.values()) - min(began for began, _ in count.spans.values())
    slots = options.nodes * options.gpus
    print(f"{len(count.spans)} of {options.cells} cells on {slots} GPUs of {options.nodes} nodes in {wall:.0f} s")
    half = len(memory) // 2
    first, second = (max(size for _, size in part) / 2**20 for part in (memory[:half], memory[half:]))
    print(f"the command's memory: at most {first:.0f} MiB in the first half, {second:.0f} MiB in the second")
    raise SystemExit(
        judged(
            Limit("cells that ended", len(count.spans), options.cells, at_least=True),
            Limit("GPUs at work", 100 * slept / (slots * wall), UTILISATION, " %", at_least=True),
        )
    )


if __name__ == "__main__":
    main()
