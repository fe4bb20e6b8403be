"""The first steps of a suite's tier-base run of EAGER-LLM (SmolLM2-135M with LoRA), small enough for a CPU.

    .venv/bin/python benchmarks/base_steps.py [--dataset ml-100k] [--steps 50]

The settings are those of suites/eager_ladder.yaml at tier base, its last row, but for batches of ``--batch-tokens``
positions, text vectors by TF-IDF (``--vectors backbone`` for the suite's: minutes more) and no adapter at the end.
Prints the mean loss a target (the contrast's share included) of each tenth of the steps, and seconds a step. The whole
run, on a GPU: genrec-bench run suites/eager_ladder.yaml --dataset amazon2014-beauty --scale base
"""

import argparse
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from genrec_bench.benchmark.protocols import Full
from genrec_bench.benchmark.suite import cells, read_suite
from genrec_bench.datasets import store
from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.base import Context
from genrec_bench.methods.checkpoint import Checkpoint
from genrec_bench.methods.eager_llm import EagerLLM
from genrec_bench.methods.language.training import Batch

PARTS = 10
SUITE = Path(__file__).resolve().parents[1] / "suites" / "eager_ladder.yaml"


class FirstSteps(EagerLLM):
    """EAGER-LLM whose epochs are ``steps_an_epoch`` long."""

    steps_an_epoch: int

    def _batches(self, *arguments: Any, **options: Any) -> Iterator[Batch]:
        return islice(super()._batches(*arguments, **options), self.steps_an_epoch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k", help="a prepared one")
    parser.add_argument("--steps", type=int, default=50, help=f"a multiple of {PARTS}")
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--vectors", default="tfidf_svd")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    suite = read_suite(SUITE).model_copy(update={"datasets": [options.dataset], "scale": "base"})
    changes = {
        "batch_tokens": options.batch_tokens, "micro_batches": 1, "epochs": PARTS, "patience": PARTS,
        "aat": {"enabled": False}, "index": {"vectors": options.vectors},
    }  # fmt: skip
    cell = cells(suite, {"eager_llm": changes})[-1]
    losses, moments = [], []

    def log(**event: Any) -> None:
        if "loss" in event and "stage" not in event:
            losses.append(event["loss"])
            moments.append(time.monotonic())
            print(f"steps {len(losses) * options.steps // PARTS} of {options.steps}: loss {losses[-1]:.3f}", flush=True)

    context = Context(
        0, "cpu", "base", Checkpoint(None), ArtefactCache(store.home() / "artefacts"), lambda method, users=0: 0.0, log
    )
    torch.manual_seed(0)
    method = FirstSteps(cell.config)
    method.steps_an_epoch = options.steps // PARTS
    method.fit(Full().split(store.load(options.dataset)).train, context)
    everything, trained = method.parameters()
    rows = [[f"{(part + 1) * method.steps_an_epoch}", f"{loss:.3f}"] for part, loss in enumerate(losses)]
    print(tabulate(rows, ["steps", "mean loss"], disable_numparse=True))
    seconds = (moments[-1] - moments[0]) / (options.steps - method.steps_an_epoch)
    print(f"{everything / 1e6:.1f} M parameters, {trained / 1e6:.1f} M trained; {seconds:.1f} s a step")


if __name__ == "__main__":
    main()
