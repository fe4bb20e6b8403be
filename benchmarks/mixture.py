"""What EAGER-LLM's tasks and contrast cost beside plain sequence training, a position and an epoch.

    .venv/bin/python benchmarks/mixture.py [--dataset ml-100k] [--threads 1]

Three trainings of the same model and index, side by side in one process, a step of each in turn: the sequence task
alone, with the text tasks, with text tasks and contrast. CPU seconds of a step (forward, backward, optimiser) are
divided by its positions, padding included. An epoch's positions are counted over all its batches.
Target: the full mixture within 1.3 times the seconds a position of the sequence task alone; exit code 1 beyond it.
"""

import argparse
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from limits import Limit, judged
from tabulate import tabulate

from genrec_bench.benchmark.protocols import Full
from genrec_bench.datasets import store
from genrec_bench.datasets.interactions import TrainView
from genrec_bench.methods import registry
from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.base import Context
from genrec_bench.methods.checkpoint import Checkpoint
from genrec_bench.methods.eager_llm import EagerLLM
from genrec_bench.methods.precision import products

WARM_UP = 3  # steps
TARGET_RATIO = 1.3


class Untrained(EagerLLM):
    """EAGER-LLM with its index, model and losses made, and its training left to this benchmark."""

    def train(self, train: TrainView, context: Context) -> None:
        contrast = self._contrast(train, context)
        if contrast is not None:
            self.model.add_module("contrast", contrast)
        self.loss_of = self.loss(contrast)
        self.batches = lambda: self._batches(train.sequences, np.random.default_rng(0), asides=contrast is not None)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        self.model.train()

    def step(self, batch: Any) -> None:
        """One optimiser step."""
        self.optimiser.zero_grad(set_to_none=True)
        with products(True, "cpu"):
            loss = self.loss_of(batch) / len(batch.targets)
        loss.backward()
        self.optimiser.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k", help="a prepared one")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--examples", type=int, default=20_000, help="of each text task, at most")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = store.load(options.dataset)
    train = Full().split(data).train
    none, every = ({"reconstruction": cap, "preference": cap} for cap in (0, options.examples))
    kinds = {
        "sequence": {"cit": none, "gct": {"enabled": False}},
        "with text tasks": {"cit": every, "gct": {"enabled": False}},
        "with text tasks and contrast": {"cit": every},
    }
    shared = {"batch_tokens": options.batch_tokens, "index": {"behaviour": "svd"}, "aat": {"enabled": False}}
    methods, batches, positions = {}, {}, {}
    with tempfile.TemporaryDirectory() as home:
        for name, values in kinds.items():
            context = Context(
                0, "cpu", "tiny", Checkpoint(None), ArtefactCache(Path(home)), lambda method, users=0: 0.0
            )
            methods[name] = Untrained(registry.configure("eager_llm", {**shared, **values}))
            methods[name].fit(train, context)
            positions[name] = sum(batch.tokens.numel() for batch in methods[name].batches())
            batches[name] = list(islice(methods[name].batches(), options.steps + WARM_UP))
    spent, seen = dict.fromkeys(kinds, 0.0), dict.fromkeys(kinds, 0)
    for number in range(options.steps + WARM_UP):
        for name, method in methods.items():
            batch = batches[name][number % len(batches[name])]
            started = time.process_time()
            method.step(batch)
            if number >= WARM_UP:
                spent[name] += time.process_time() - started
                seen[name] += batch.tokens.numel()
    rate = {name: spent[name] / seen[name] for name in kinds}
    base = next(iter(kinds))
    rows = [
        [name, f"{positions[name]:,}", f"{1e6 * rate[name]:.1f}", f"{rate[name] / rate[base]:.2f}",
         f"{rate[name] * positions[name]:.1f}"]
        for name in kinds
    ]  # fmt: skip
    print(tabulate(rows, ["training", "positions", "CPU us a position", "x", "CPU s an epoch"], disable_numparse=True))
    raise SystemExit(judged(Limit("ratio", rate[name] / rate[base], TARGET_RATIO)))


if __name__ == "__main__":
    main()
