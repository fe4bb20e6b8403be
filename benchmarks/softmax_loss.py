"""Our full-softmax loss against ``torch.nn.functional.cross_entropy``, forward and backward, on the CPU.

    .venv/bin/python benchmarks/softmax_loss.py [--positions 1024] [--items 12101] [--dims 64,128] [--repeats 15]

Counted: seconds of one loss and its ``backward`` to hidden states and item table, both float32; the rivals take turns
and the medians of ``--repeats`` turns count. "CPU ms" is processor time of all threads. On a busy machine use
``--threads 1``: with more threads than free cores both clocks measure waiting at barriers. bf16 is
`losses.full_softmax` with products in bfloat16, as `sasrec` trains. A gradient's error is |found - reference| /
|reference| (Euclidean) against cross_entropy in float64.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn import functional

from genrec_bench.methods import losses

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(hidden: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """What most code bases write."""
    return functional.cross_entropy(hidden @ table.T, targets)


RIVALS: dict[str, Loss] = {
    "cross_entropy": plain,
    "ours fp32": partial(losses.full_softmax, dtype=torch.float32),
    "ours bf16": partial(losses.full_softmax, dtype=torch.bfloat16),
}


def problem(positions: int, items: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states (P, d) as after a layer norm, an item table (N, d) and targets (P,); logits of a trained size."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(positions, dim, generator=generator)
    table = torch.randn(items, dim, generator=generator) * (2.0 / dim**0.5)
    return hidden, table, torch.randint(items, (positions,), generator=generator)


def gradients(loss: Loss, hidden: Tensor, table: Tensor, targets: Tensor) -> tuple[tuple[float, float], list[Tensor]]:
    """Wall and processor seconds of forward and backward, and the gradients of hidden states and table."""
    leaves = [hidden.clone().requires_grad_(), table.clone().requires_grad_()]
    started, started_cpu = time.perf_counter(), time.process_time()
    loss(*leaves, targets).backward()
    spent = time.perf_counter() - started, time.process_time() - started_cpu
    return spent, [leaf.grad for leaf in leaves if leaf.grad is not None]


def measure(positions: int, items: int, dim: int, repeats: int) -> list[list[str | float]]:
    """One row a rival: milliseconds and ratios to cross_entropy, wall and processor; errors of both gradients."""
    hidden, table, targets = problem(positions, items, dim)
    _, exact = gradients(plain, hidden.double(), table.double(), targets)
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in RIVALS}
    errors: dict[str, list[float]] = {}
    for turn in range(repeats + 1):
        for name, loss in RIVALS.items():
            seconds, found = gradients(loss, hidden, table, targets)
            if turn:  # the first turn warms up
                spent[name].append(seconds)
            errors[name] = [float((f.double() - e).norm() / e.norm()) for f, e in zip(found, exact, strict=True)]
    ms = {name: [1e3 * median(clock) for clock in zip(*of, strict=True)] for name, of in spent.items()}
    base_wall, base_cpu = ms[next(iter(RIVALS))]
    return [
        [f"{name}, d={dim}", wall, base_wall / wall, cpu, base_cpu / cpu, *errors[name]]
        for name, (wall, cpu) in ms.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=1024)
    parser.add_argument("--items", type=int, default=12_101, help="Amazon Beauty's catalogue")
    parser.add_argument("--dims", default="64,128")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for dim in map(int, options.dims.split(",")):
        rows += measure(options.positions, options.items, dim, options.repeats)
    headers = [
        "loss",
        "ms",
        "times faster",
        "CPU ms",
        "times less",
        "error of hidden's gradient",
        "error of table's gradient",
    ]
    print(f"{options.positions} positions, {options.items} items, {options.threads} threads, forward and backward")
    print(tabulate(rows, headers, floatfmt=("", ".1f", ".2f", ".1f", ".2f", ".1e", ".1e")))


if __name__ == "__main__":
    main()
