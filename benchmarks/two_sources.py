"""Whether an index of two sources is worth more than either, where neither alone says what comes next.

    .venv/bin/python benchmarks/two_sources.py [--seeds 5] [--users 240]

Made-up data: an item has a kind, which its title says, and a circle, which nothing says but who takes it. A user stays
in a circle and goes from kind to kind in a fixed order, so that the next item is one of the four of the next kind in
the user's circle: at best, NDCG@10 is 0.64. Text vectors know kinds, behaviour vectors (SVD of who took what) know
circles. Each item is seen a few times, so that what a code does not say has to be learned item by item from little.

EAGER-LLM with contrast and adapter off, same vocabulary and training for all modes; full ranking of the last item of
each user. Printed: NDCG@10 a mode, and the paired test over users of `unit` against each other mode, seeds averaged
first. Target: `unit` above `semantic` and `behavior`, Holm's p below 0.05.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

from genrec_bench.benchmark import metrics, statistics
from genrec_bench.benchmark.evaluate import evaluate, validation_ranks
from genrec_bench.benchmark.protocols import Full, selection_value
from genrec_bench.datasets.events import item_table
from genrec_bench.datasets.interactions import Histories, InteractionData
from genrec_bench.methods import registry
from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.base import Context, Method
from genrec_bench.methods.checkpoint import Checkpoint

MODES = ("unit", "semantic", "behavior", "random")
KINDS, CIRCLES, EACH = 8, 8, 4  # items of each kind in each circle
LENGTH = 10


def made_up(users: int, seed: int) -> InteractionData:
    """``users`` walks of ``LENGTH`` items; items are numbered at random."""
    rng = np.random.default_rng(seed)
    count = KINDS * CIRCLES * EACH
    number = rng.permutation(count).reshape(KINDS, CIRCLES, EACH)
    titles = np.empty(count, dtype=object)
    for kind in range(KINDS):
        titles[number[kind].ravel()] = f"kind{chr(ord('a') + kind)}"
    kinds = (rng.integers(0, KINDS, users)[:, None] + np.arange(LENGTH)) % KINDS
    circles = np.repeat(rng.integers(0, CIRCLES, users)[:, None], LENGTH, axis=1)
    items = number[kinds, circles, rng.integers(0, EACH, kinds.shape)].astype(np.int32)
    sequences = Histories(np.arange(users), np.arange(users + 1) * LENGTH, items.ravel())
    table = item_table([f"i{item}" for item in range(count)], titles.tolist())
    return InteractionData(
        "two_sources", np.array([f"u{user}" for user in range(users)], dtype=object), table, sequences
    )


def ndcg(data: InteractionData, mode: str, seed: int, home: Path) -> np.ndarray:
    """NDCG@10 of each user under an index of ``mode``."""
    rules = Full()
    split = rules.split(data)
    config = registry.configure(
        "eager_llm",
        {
            "layers": 2, "width": 64, "heads": 2, "feedforward": 256, "tied": False, "max_history": LENGTH,
            "epochs": 40, "patience": 40, "validate_every": 4, "learning_rate": 0.003, "averaging": 0.99,
            "batch_tokens": 512, "loss_over": "trie",
            "cit": {"reconstruction": 0, "preference": 0}, "gct": {"enabled": False}, "aat": {"enabled": False},
            "index": {"mode": mode, "codes": 16, "leaf": "coarse", "leaf_size": EACH, "behaviour": "svd", "dim": 8,
                      "vectors": "tfidf_svd", "max_collision_rate": 1.0, "min_first_level_use": 0.0},
        },
    )  # fmt: skip

    def validate(method: Method, users: int = 0) -> float:
        return selection_value(rules, validation_ranks(method, split.valid, rules, data.num_items))

    torch.manual_seed(seed)
    method = registry.get("eager_llm")(config)
    method.fit(split.train, Context(seed, "cpu", "tiny", Checkpoint(None), ArtefactCache(home), validate))
    ranks = evaluate(method, split.test, rules, data.num_items).ranks
    return metrics.per_user(ranks, "full")["ndcg@10"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--users", type=int, default=240)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = made_up(options.users, seed=0)
    found: dict[str, list[np.ndarray]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory() as home:
        for seed in range(options.seeds):
            for mode in MODES:
                found[mode].append(ndcg(data, mode, seed, Path(home)))
                print(f"seed {seed} {mode}: NDCG@10 {found[mode][-1].mean():.4f}", flush=True)
    means = {mode: statistics.over_seeds(values) for mode, values in found.items()}
    others = MODES[1:]
    p_values = statistics.holm([statistics.paired_t(means["unit"], means[mode]) for mode in others])
    p_of = dict(zip(others, p_values, strict=True))
    spread = {mode: np.std([one.mean() for one in values]) for mode, values in found.items()}
    rows = [
        [mode, f"{means[mode].mean():.4f}", f"{spread[mode]:.4f}", f"{p_of[mode]:.1e}" if mode in p_of else ""]
        for mode in MODES
    ]
    print(tabulate(rows, ["mode", "NDCG@10", "sd over seeds", "p against unit (Holm)"], disable_numparse=True))


if __name__ == "__main__":
    main()
