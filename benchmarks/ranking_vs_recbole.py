"""Full ranking of Amazon Beauty's 22,363 users over 12,101 items: our `evaluate` against RecBole 1.2.1's Trainer.

    .venv/bin/python benchmarks/ranking_vs_recbole.py [--beauty ../shared/data/amazon2014-beauty] [--rival-env DIR]

Both sides rank the same test rows with an untrained SASRec of the same size (64 wide, 2 blocks, 2 heads, the 50 most
recent items) and compute Recall and NDCG at 1, 5, 10, 20 and MRR at 20 (RecBole at all four): RecBole by
``Trainer.evaluate`` (full_sort_predict, its collector and metrics, its default batch of 4,096 rows), ours by `evaluate`
and `metrics.per_user`. Each run is a fresh process, the two take turns ``--rounds`` times, and medians of all repeats
count.

Counted: seconds from the call to the metrics ("all"), those of them inside the model's scoring ("model"), and the rest
("evaluator": top-k, ranks, checks, metrics); "CPU" is the processor time of "all", to be read
with ``--threads 1`` on a busy machine, where more threads measure waiting at barriers. The peak is a process' largest
resident size, imports and data included.
"with intervals" adds what our records hold and RecBole has not: bootstrap intervals, slices and list metrics.
Targets: "all" 3 times faster or more, our peak under 1 GiB. Without Beauty a random data set of its shape stands in.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import recbole_env
import torch
from tabulate import tabulate
from torch import Tensor

from genrec_bench.benchmark import metrics
from genrec_bench.benchmark.evaluate import evaluate
from genrec_bench.benchmark.protocols import Full
from genrec_bench.datasets.interactions import ITEM_COLUMNS, Histories, InteractionData
from genrec_bench.datasets.readers import read
from genrec_bench.methods.sasrec import SASRec, SASRecModel

HERE = Path(__file__).resolve()
BEAUTY = HERE.parent.parent.parent / "shared" / "data" / "amazon2014-beauty"
USERS, ITEMS, MEAN_LENGTH = 22_363, 12_101, 8.9
TARGET_RATIO, TARGET_PEAK_MIB = 3.0, 1024


class TimedSASRec(SASRec):
    """An untrained `sasrec` that adds up the seconds of its own scoring."""

    def __init__(self, num_items: int):
        super().__init__(self.Config(dim=64, blocks=2, heads=2, max_length=50))
        self.model = SASRecModel(num_items, self.config).eval()
        self.model_s = 0.0

    def score(self, histories: Histories) -> Tensor:
        started = time.perf_counter()
        scores = super().score(histories)
        self.model_s += time.perf_counter() - started
        return scores


def read_data(beauty: Path) -> InteractionData:
    """Beauty, or random sequences of its shape."""
    if beauty.is_dir():
        return read(beauty, "plain").to_data("beauty")
    print(f"{beauty} is absent: random sequences of its shape", file=sys.stderr)
    rng = np.random.default_rng(0)
    lengths = 5 + rng.geometric(1 / (MEAN_LENGTH - 4), USERS) - 1
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    sequences = Histories(np.arange(USERS), offsets, rng.integers(0, ITEMS, offsets[-1]).astype(np.int32))
    items = pd.DataFrame("", index=range(ITEMS), columns=list(ITEM_COLUMNS))
    items["item_id"] = np.arange(ITEMS).astype(str)
    return InteractionData("random", np.arange(USERS).astype(str).astype(object), items, sequences)


def rank_ours(beauty: Path, repeats: int) -> dict[str, Any]:
    """Our side of one round, in the form that `recbole_worker.py` answers."""
    data = read_data(beauty)
    rules = Full()
    split = rules.split(data)
    torch.manual_seed(0)
    method = TimedSASRec(data.num_items)
    before = peak_mib()
    runs, values = [], {}
    for _ in range(repeats):
        method.model_s = 0.0
        started, started_cpu = time.perf_counter(), time.process_time()
        answers = evaluate(method, split.test, rules, data.num_items)
        ranked = time.perf_counter()
        values = {name: float(value.mean()) for name, value in metrics.per_user(answers.ranks, rules.name).items()}
        done, done_cpu = time.perf_counter(), time.process_time()
        metrics.summarise(answers, split, rules.name)
        runs.append(
            {
                "seconds": done - started,
                "cpu_s": done_cpu - started_cpu,
                "model_s": method.model_s,
                "metrics_s": done - ranked,
                "intervals_s": time.perf_counter() - done,
            }
        )
    return {
        "runs": runs,
        "metrics": values,
        "users": len(answers.ranks),
        "peak_mib": peak_mib(),
        "before_mib": before,
    }


def peak_mib() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def take_turns(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Answers of every round, by side."""
    answers: dict[str, list[dict[str, Any]]] = {"RecBole": [], "ours": []}
    numbers = ["--repeats", str(options.repeats), "--threads", str(options.threads)]
    with (
        recbole_env.rival_python(options.rival_env) as python,
        tempfile.TemporaryDirectory(prefix="recbole-work-") as work,
    ):
        files = recbole_env.export(read_data(options.beauty), Path(work))
        worker = HERE.with_name("recbole_worker.py")
        theirs = [python, worker, "rank", files, Path(work) / "saved", *numbers]
        ours = [sys.executable, HERE, "--one-side", "--beauty", options.beauty, *numbers]
        for _ in range(options.rounds):
            answers["RecBole"].append(recbole_env.run_json(theirs, options.threads))
            answers["ours"].append(recbole_env.run_json(ours, options.threads))
    return answers


def of(answers: list[dict[str, Any]], key: str) -> float:
    """Median over all rounds and repeats."""
    return median(run[key] for answer in answers for run in answer["runs"])


def report(answers: dict[str, list[dict[str, Any]]]) -> None:
    """Print the table, our metrics' seconds and the ratio."""
    rows = []
    for side, of_side in answers.items():
        total, cpu, model = (of(of_side, key) for key in ("seconds", "cpu_s", "model_s"))
        peak, before = (max(answer[key] for answer in of_side) for key in ("peak_mib", "before_mib"))
        rows.append([side, of_side[0]["users"], total, cpu, model, total - model, before, peak])
    rows.append(["ratio", None, *(rows[0][column] / rows[1][column] for column in range(2, 8))])
    headers = ["side", "users", "all s", "CPU s", "model s", "evaluator s", "MiB before", "peak MiB"]
    print(tabulate(rows, headers, floatfmt=("", ".0f", ".2f", ".2f", ".2f", ".2f", ".1f", ".1f")))
    ours = answers["ours"]
    total, intervals = of(ours, "seconds"), of(ours, "intervals_s")
    print(f"ours: metrics alone {of(ours, 'metrics_s'):.4f} s; with intervals {total + intervals:.2f} s")
    ratio, peak = rows[2][2], rows[1][7]
    print(f"ratio {ratio:.1f} (target {TARGET_RATIO:g} or more), our peak {peak:.0f} MiB (under {TARGET_PEAK_MIB})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    recbole_env.add_option(parser)
    parser.add_argument("--beauty", type=Path, default=BEAUTY, help="folder with interactions.tsv.gz and items.tsv.gz")
    parser.add_argument("--rounds", type=int, default=2, help="fresh processes of each side")
    parser.add_argument("--repeats", type=int, default=3, help="evaluations in each process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one-side", action="store_true", help="our side of one round, as JSON (used by the script)")
    options = parser.parse_args()
    if options.one_side:
        torch.set_num_threads(options.threads)
        print(json.dumps(rank_ours(options.beauty, options.repeats)))
    else:
        report(take_turns(options))


if __name__ == "__main__":
    main()
