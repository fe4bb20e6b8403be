"""The leaderboard over thousands of records: seconds for each form, and the size of the page.

    python benchmarks/report.py [--records 5000] [--keep FOLDER]

Records are made up: methods of several families with three seeds each, on data sets of MovieLens-100K's 943 users and
one of Amazon Beauty's 22,363. Nothing is cached between the measurements, but the files are warm. Limits for 5,000
records: the page within 5 s and 3 MB (2.86 MiB); exit code 1 beyond them.
"""

import argparse
import tempfile
import time
from itertools import count
from pathlib import Path

import numpy as np
from limits import Limit, judged

from genrec_bench.benchmark import metrics, records, standings, statistics, storage

FAMILIES = ("generative", "sequential", "counting", "graph", "language")
SEEDS = 3
DATASETS = 19  # small ones; the last one is large
PAGE_MIB = 3e6 / 2**20
SECONDS = 5.0


def make(results: Path, total: int) -> None:
    """``total`` records under ``results``, written as runs are but without waiting for the disk."""
    rng = np.random.default_rng(0)
    number = count()
    per_dataset = -(-total // (DATASETS * SEEDS)) * SEEDS
    for dataset in range(DATASETS):
        users = 22_363 if dataset == DATASETS - 1 else 943
        ease = rng.normal(0, 1, users)
        for method in range(per_dataset // SEEDS):
            skill = rng.normal(-2.2, 0.3)
            for seed in range(SEEDS):
                if next(number) >= total:
                    return
                found = rng.random(users) < 1 / (1 + np.exp(-(skill + ease + rng.normal(0, 0.1))))
                ranks = np.where(found, rng.integers(1, 21, users), 0)
                _write(results, f"set-{dataset:02d}", method, seed, ranks, rng)


def _write(results: Path, dataset: str, method: int, seed: int, ranks: np.ndarray, rng: np.random.Generator) -> None:
    family = FAMILIES[method % len(FAMILIES)]
    values = metrics.per_user(ranks, "full")
    intervals = {
        name: statistics.Interval(mean=float(one.mean()), low=float(one.mean() * 0.9), high=float(one.mean() * 1.1))
        for name, one in values.items()
    }
    identity = f"{rng.integers(2**62):016x}"
    record = records.Record.model_validate(
        {
            "run_id": identity, "method": f"{family}_{method % 9}", "label": f"{family}-{method}", "family": family,
            "plugin_sha256": None, "method_version": 1, "published_as": None,
            "config": {f"setting_{k}": float(k) for k in range(40)}, "overrides": {"dropout": 0.3, "dim": method},
            "dataset": {"name": dataset, "sha256": f"{dataset:>064}", "users": len(ranks), "items": 1682,
                        "interactions": 100_000},
            "protocol": {"name": "full", "mask_seen": False, "parameters": {}, "hash": "3b06ea6a293cbed2"},
            "tier": "tiny", "seed": seed, "metrics": intervals, "list_metrics": {"coverage@10": 0.5},
            "slices": {name: {"users": len(ranks) // 2, "metrics": intervals}
                       for name in ("short_history", "long_history", "head_target", "tail_target", "cold_target")},
            "validation": {"metric": "ndcg@10", "value": 0.1}, "evaluated_users": len(ranks),
            "cost": {"parameters": 10**6, "trainable_parameters": 10**6, 
                     "train_seconds": float(10 ** rng.uniform(0, 4)), "recommend_seconds": 1.0,
                     "users_per_second": float(10 ** rng.uniform(2, 5)),
                     "peak_memory_mib": 900.0, "device": "cpu", "hardware": "CPU", "threads": 2},
            "provenance": {"git_commit": "0" * 40, "git_dirty": False, "versions": {"torch": "2.13.0"},
                           "platform": "Linux", "created": f"2026-01-01T00:{seed:02d}:00+00:00"},
        }
    )  # fmt: skip
    folder = records.run_folder(results, dataset, record.method, identity)
    folder.mkdir(parents=True)
    text = record.model_dump_json(indent=2, by_alias=True)
    (folder / "run.json").write_text(text + "\n", encoding="utf-8")
    (folder / "ranks.parquet").write_bytes(records._ranks_bytes(np.arange(len(ranks)), ranks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=5_000)
    parser.add_argument("--keep", type=Path, help="write the page into this folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        make(results, arguments.records)
        for form in ("text", "html"):
            started, cpu = time.perf_counter(), time.process_time()
            page = standings.render(results, form)
            took, work = time.perf_counter() - started, time.process_time() - cpu
            size = len(page.encode()) / 2**20
            print(f"{arguments.records:,} records, {form}: {took:.1f} s ({work:.1f} s of one core), {size:.2f} MiB")
        if arguments.keep is not None:
            arguments.keep.mkdir(parents=True, exist_ok=True)
            storage.write_bytes(arguments.keep / "report.html", page.encode())
    # of the html form, the last
    raise SystemExit(judged(Limit("seconds", took, SECONDS, " s"), Limit("page", size, PAGE_MIB, " MiB")))


if __name__ == "__main__":
    main()
