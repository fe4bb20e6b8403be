"""What a graph's guidance costs at decoding time: the same search with and without it, and the machines of all users.

    .venv/bin/python benchmarks/fsm.py [--users 64] [--n 10] [--width 20] [--threads 2]

The model is decoding.py's tiny Llama over LETTER's codes of Beauty (random ones where they are absent), weights at
random, histories of 20 items. Turns alternate; the medians of ``--repeats`` turns count. "machines" is scoring, the n
best unseen items and the machine of 22,363 users, from vectors of 64 numbers.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from decoding import BEAUTY, HISTORY, LEVELS, MODELS, Problem, load_index, seconds
from tabulate import tabulate

from genrec_bench.methods.decoding.beam import Hook, beam_search, beam_search_each
from genrec_bench.methods.decoding.fsm import Logits, Probabilities, RankableFSM
from genrec_bench.methods.decoding.trie import ItemTrie
from genrec_bench.methods.scoring import ROWS

ALL_USERS, DIM = 22_363, 64


def machines(trie: ItemTrie, n: int, rng: np.random.Generator) -> float:
    """Seconds for the machines of `ALL_USERS` users."""
    users = torch.from_numpy(rng.normal(size=(ALL_USERS, DIM)).astype(np.float32))
    vectors = torch.from_numpy(rng.normal(size=(trie.num_items, DIM)).astype(np.float32))
    seen = torch.from_numpy(rng.integers(0, trie.num_items, (ALL_USERS, HISTORY)))
    started = time.perf_counter()
    for start in range(0, ALL_USERS, ROWS):
        scores = (users[start : start + ROWS] @ vectors.T).scatter_(1, seen[start : start + ROWS], -torch.inf)
        best = scores.topk(n, dim=1)
        RankableFSM(trie, best.indices.numpy(), best.values.numpy())
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--n", type=int, default=10)
    parser.add_argument("--width", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    index = load_index(BEAUTY / "codes.json.gz", 12_101)
    trie = ItemTrie.from_index(index)
    make, first = MODELS["tiny-llama"]
    token_ids = [torch.arange(size) + first + size * level for level, size in enumerate(index.level_sizes)]
    histories = [rng.integers(0, trie.num_items, HISTORY) for _ in range(arguments.users)]
    problem = Problem(make().eval(), index, trie, token_ids, histories, arguments.width)
    suggested = np.stack([rng.permutation(trie.num_items)[: arguments.n] for _ in range(arguments.users)])
    machine = RankableFSM(trie, suggested, rng.normal(size=suggested.shape))
    hooks: dict[str, tuple[Hook | None, Any]] = {
        "no guidance": (None, "trie"),
        "paper, max": (Probabilities(machine, 0.5), "trie"),
        "paper, sum": (Probabilities(machine, 0.5, "sum"), "trie"),
        "no guidance, whole vocabulary": (None, "vocabulary"),
        "official": (Logits(machine, 0.5, token_ids), "level"),
    }

    def search(name: str) -> None:
        hook, normalise = hooks[name]
        width = arguments.width
        beam_search(problem.adapter, problem.prompt, trie, token_ids, width, normalise=normalise, hook=hook)

    spent: dict[str, list[float]] = {name: [] for name in hooks}
    for turn in range(arguments.repeats + 1):
        for name in hooks:
            took = seconds(lambda name=name: search(name), trie.device)
            if turn:  # the first turn warms up
                spent[name].append(took)
    curve = [Probabilities(machine, alpha / 10) for alpha in range(1, 10)]
    common: dict[str, Any] = {"width": arguments.width, "normalise": "trie"}
    given = (problem.adapter, problem.prompt, trie, token_ids)
    ways: dict[str, Callable[[], Any]] = {
        "one after the other": lambda: [beam_search(*given, hook=hook, **common) for hook in curve],
        "side by side": lambda: beam_search_each(*given, hooks=curve, **common),
    }
    curves = {name: [seconds(way, trie.device) for _ in range(arguments.repeats)] for name, way in ways.items()}
    plain = {name: spent["no guidance, whole vocabulary" if name == "official" else "no guidance"] for name in hooks}
    rows = [
        (name, 1e3 * median(of) / LEVELS, median(mine / base for mine, base in zip(of, plain[name], strict=True)))
        for name, of in spent.items()
    ]
    asked = f"{arguments.users} users, {arguments.width} beams, {arguments.n} suggestions"
    print(f"{asked}, {torch.get_num_threads()} threads")
    print(tabulate(rows, headers=["search", "ms a step", "of the same without"], floatfmt=("", ".1f", ".3f")))
    apart, together = (median(of) for of in curves.values())
    curve_s = f"{apart:.2f} s one after the other, {together:.2f} s side by side, {apart / together:.1f} times less"
    print(f"nine values of alpha: {curve_s}")
    print(f"machines of {ALL_USERS:,} users: {machines(trie, arguments.n, rng):.2f} s")


if __name__ == "__main__":
    main()
