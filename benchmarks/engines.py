"""Whether both engines make the same records: one suite run by the local engine and by Ray, compared cell by cell.

    .venv/bin/python benchmarks/engines.py [--suite suites/quickstart.yaml] [--quick] [--jobs 2] [--keep DIR]

Each engine has a home and a results folder of its own, so neither finds the other's artefacts. Compared: run ids,
metrics with intervals, slices, list metrics, validation, variants and stages bit by bit, the tables of ranks and of
rankings by content. Exit code 1 on any difference, on a cell that failed, or where nothing could be compared.

Metrics are equal where a cell has the same number of threads: the local engine gives it cores / jobs of them, Ray its
``cpus`` (1 unless asked otherwise). ``--jobs`` is therefore the number of cores by default. ``--quick`` is a suite of
counting and a small network on synthetic data instead; the quick start takes 11 minutes an engine on two cores.
"""

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from kill_and_resume import COMMAND, COMPARED, compare

from genrec_bench.datasets import store

ENGINES = ("local", "ray")
EVERYTHING = (*COMPARED, "variants", "stages")
QUICK: dict[str, Any] = {
    "name": "engines-quick",
    "datasets": ["synthetic"],
    "protocols": ["full", "cand20"],
    "methods": ["popularity", "item_knn", {"method": "sasrec", "config": {"epochs": 3}}],
    "seeds": [0, 1],
}


def run(suite: Path, engine: str, folder: Path, jobs: int) -> Path:
    """The results folder of the suite, run by one engine in a home of its own under ``folder``."""
    home, results = folder / f"home-{engine}", folder / engine
    for name in yaml.safe_load(suite.read_text(encoding="utf-8"))["datasets"]:
        prepared = store.home() / "datasets" / name
        if prepared.is_dir():  # some cannot be fetched
            shutil.copytree(prepared, home / "datasets" / name)
    environment = {**os.environ, "GENREC_BENCH_HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [COMMAND, "run", suite, "--results", results, "--engine", engine, "--jobs", str(jobs), "--quiet"]
    started = time.monotonic()
    ended = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False).returncode
    print(f"{engine}: {time.monotonic() - started:.0f} s, exit code {ended}", flush=True)
    return results


def judge(local: Path, other: Path) -> int:
    """Print what differs between two results folders; the exit code."""
    cells, found = compare(local, other, EVERYTHING)
    found += [f"{path.relative_to(local)}: a cell failed" for path in local.glob("*/*/*.failed.json")]
    print(f"cells compared: {cells}, differences: {len(found)}")
    for line in found:
        print(f"  {line}")
    return int(bool(found) or not cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, default=Path("suites/quickstart.yaml"))
    parser.add_argument("--quick", action="store_true", help="a small suite on synthetic data in its place")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cells at a time, of both engines")
    parser.add_argument("--keep", type=Path, help="empty folder for both homes and results, kept for inspection")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="engines-") as temporary:
        folder = options.keep.resolve() if options.keep else Path(temporary)
        suite = options.suite.resolve()
        if options.quick:
            suite = Path(temporary) / "quick.yaml"
            suite.write_text(yaml.safe_dump(QUICK), encoding="utf-8")
        local, other = (run(suite, engine, folder, options.jobs) for engine in ENGINES)
        raise SystemExit(judge(local, other))


if __name__ == "__main__":
    main()
