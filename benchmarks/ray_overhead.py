"""What the engine `ray` costs on one machine, against the local engine: the same short cells, a few at a time.

    .venv/bin/python benchmarks/ray_overhead.py [--cells 12] [--jobs 2] [--epochs 20]

SASRec on the synthetic data set, one seed a cell. Three times: the local engine with one job, with ``--jobs`` jobs, and
Ray with ``--jobs`` workers on a Ray that is up already (its start is printed apart). Records of all three are compared.
The overhead of a cell is (wall time x workers - the cells' own seconds) / cells, for both engines: starting a process,
data, ranking and records are in it, training is not. Limits: Ray with two jobs takes at most 0.6 of the local engine's
time with one, and at most 3 s a cell outside training and ranking; exit code 1 beyond them, or where metrics differ.
Two hyperthreads of one core do 1.6 times the work of one process at best: there 0.625 is what can be had.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ray
from limits import Limit, judged

from genrec_bench.benchmark import records
from genrec_bench.benchmark.progress import Progress
from genrec_bench.benchmark.ray_engine import QUIET, run_on_ray
from genrec_bench.benchmark.runner import Outcome, run_grid
from genrec_bench.benchmark.suite import cells, make_suite
from genrec_bench.datasets import store

RATIO = 0.6  # of the wall time of one job
OVERHEAD_S = 3.0


def timed(run: Callable[[Path], Outcome], results: Path) -> tuple[float, float]:
    """Wall seconds of a grid, and the seconds of training and ranking in its records."""
    started = time.monotonic()
    outcome = run(results)
    seconds = time.monotonic() - started
    if outcome.failed:
        raise SystemExit(f"cells failed: {outcome.failed}")
    found, _ = records.read_all(results)
    return seconds, sum(one.cost.train_seconds + one.cost.recommend_seconds for one in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=12)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    os.environ.update(QUIET)
    config = {"epochs": options.epochs, "patience": 1000}
    values = {"methods": [{"method": "sasrec", "config": config}], "datasets": ["synthetic"]}
    grid = cells(make_suite({**values, "seeds": list(range(options.cells))}))
    quiet = Progress(quiet=True)
    with tempfile.TemporaryDirectory(prefix="ray-overhead-") as folder:
        os.environ["GENREC_BENCH_HOME"] = f"{folder}/home"
        os.environ["OMP_NUM_THREADS"] = "1"  # of every engine's cells
        store.load("synthetic")
        places = {name: Path(folder) / name for name in ("local, 1 job", "local", "ray")}
        figures = {"local, 1 job": timed(lambda at: run_grid(grid, at, quiet, jobs=1), places["local, 1 job"])}
        figures["local"] = timed(lambda at: run_grid(grid, at, quiet, jobs=options.jobs), places["local"])
        started = time.monotonic()
        ray.init(num_cpus=options.jobs, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        print(f"Ray's start: {time.monotonic() - started:.1f} s")
        figures["ray"] = timed(lambda at: run_on_ray(grid, at, quiet, jobs=options.jobs), places["ray"])
        ray.shutdown()
        metrics = [{one.run_id: one.metrics for one in records.read_all(places[name])[0]} for name in ("local", "ray")]
    overhead_s = {}
    for name, (wall_s, own_s) in figures.items():
        workers = 1 if name == "local, 1 job" else options.jobs
        overhead_s[name] = (wall_s * workers - own_s) / options.cells
        print(f"{name}: {wall_s:.1f} s, of a worker and cell outside training and ranking {overhead_s[name]:.2f} s")
    ratios = {name: figures["ray"][0] / figures[name][0] for name in ("local, 1 job", "local")}
    print(json.dumps({f"ray / {name}": round(ratio, 3) for name, ratio in ratios.items()}))
    print(f"equal metrics: {metrics[0] == metrics[1]}")
    beyond = judged(
        Limit("ray / local, 1 job", ratios["local, 1 job"], RATIO),
        Limit("a cell outside training and ranking", overhead_s["ray"], OVERHEAD_S, " s"),
    )
    raise SystemExit(beyond or metrics[0] != metrics[1])


if __name__ == "__main__":
    main()
