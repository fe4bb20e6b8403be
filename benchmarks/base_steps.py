"""The first steps of a suite's tier-base run of EAGER-LLM (SmolLM2-135M with LoRA), small enough for a CPU.

    .venv/bin/python benchmarks/base_steps.py [--dataset ml-100k] [--steps 50]

The settings are those of suites/eager_ladder.yaml at tier base, its last row, but for batches of ``--batch-tokens``
positions, text vectors by TF-IDF (``--vectors backbone`` for the suite's: minutes more) and no adapter at the end.
Prints, after each tenth of the steps, the mean loss a target (the contrast's share included) of a few batches that are
set apart and the same each time, and at the end seconds a step, those included. The whole run, on a GPU:

    genrec-bench run suites/eager_ladder.yaml --dataset amazon2014-beauty --scale base
"""

import argparse
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from genrec_bench.benchmark.protocols import Full
from genrec_bench.benchmark.suite import cells, read_suite
from genrec_bench.datasets import store
from genrec_bench.datasets.interactions import Histories
from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.base import Context
from genrec_bench.methods.checkpoint import Checkpoint
from genrec_bench.methods.eager_llm import EagerLLM
from genrec_bench.methods.language.codes import CodeLoss, Contrast
from genrec_bench.methods.language.training import Batch
from genrec_bench.methods.precision import products

PARTS = 10
PROBES = 8  # batches set apart
SUITE = Path(__file__).resolve().parents[1] / "suites" / "eager_ladder.yaml"


class FirstSteps(EagerLLM):
    """EAGER-LLM whose epochs are ``steps_an_epoch`` long."""

    steps_an_epoch: int

    def loss(self, contrast: Contrast | None = None) -> CodeLoss:
        self.loss_of = super().loss(contrast)
        return self.loss_of

    def _batches(self, sequences: Histories, rng: np.random.Generator, asides: bool = False) -> Iterator[Batch]:
        self.apart = lambda: islice(EagerLLM._batches(self, sequences, np.random.default_rng(0), asides), PROBES)
        return islice(super()._batches(sequences, rng, asides), self.steps_an_epoch)

    @torch.no_grad()
    def loss_apart(self) -> float:
        """Mean loss a target of the batches that are set apart."""
        total = targets = 0.0
        for batch in self.apart():
            with products(self.config.bf16, "cpu"):
                total += float(self.loss_of(batch))
            targets += int((batch.levels >= -1).sum())
        return total / targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k", help="a prepared one")
    parser.add_argument("--steps", type=int, default=50, help=f"a multiple of {PARTS}")
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--vectors", default="tfidf_svd")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    suite = read_suite(SUITE)
    suite = suite.model_copy(update={"datasets": [options.dataset], "scale": "base", "methods": suite.methods[-1:]})
    changes = {
        "batch_tokens": options.batch_tokens, "micro_batches": 1, "epochs": PARTS, "patience": PARTS,
        "aat": {"enabled": False}, "index": {"vectors": options.vectors},
    }  # fmt: skip
    cell = cells(suite, {"eager_llm": changes})[0]
    losses, moments = [], []

    def validate(method: Any, users: int = 0) -> float:
        losses.append(method.loss_apart())
        moments.append(time.monotonic())
        print(f"steps {len(losses) * options.steps // PARTS} of {options.steps}: loss {losses[-1]:.3f}", flush=True)
        return -losses[-1]

    context = Context(0, "cpu", "base", Checkpoint(None), ArtefactCache(store.home() / "artefacts"), validate)
    torch.manual_seed(0)
    method = FirstSteps(cell.config)
    method.steps_an_epoch = options.steps // PARTS
    method.fit(Full().split(store.load(options.dataset)).train, context)
    everything, trained = method.parameters()
    rows = [[f"{(part + 1) * method.steps_an_epoch}", f"{loss:.3f}"] for part, loss in enumerate(losses)]
    print(tabulate(rows, ["steps", "loss apart"], disable_numparse=True))
    seconds = (moments[-1] - moments[0]) / (options.steps - method.steps_an_epoch)
    print(f"{everything / 1e6:.1f} M parameters, {trained / 1e6:.1f} M trained; {seconds:.1f} s a step")


if __name__ == "__main__":
    main()
