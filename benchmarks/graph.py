"""Graph encoders: seconds an epoch against plain torch.sparse, time to the best validation score, a very large graph.

    .venv/bin/python benchmarks/graph.py [--dataset amazon2014-beauty] [--part epoch|best|large] [--threads 1]

``epoch`` (default): LightGCN, 64 wide, 3 layers, batches of 2,048 triples. The rival is what common repositories write:
a COO matrix, ``torch.sparse.mm`` with autograd, all layers stacked and averaged, embeddings looked up for the L2 part,
plain Adam. Same sampler, same triples, same start; they take turns, an epoch each (or ``--steps`` of it), and the
medians of ``--repeats`` turns count. "CPU s" is processor time of all threads: read that on a busy machine. Ours also
on its other back ends (dgl where it is installed). "mean loss" shows that all learn the same. Target: at least twice as
fast as the rival, else exit code 1.

``best``: each encoder of ``--methods`` with its defaults, trained until validation stops improving: seconds (training
and validation) and epochs to the best NDCG@10. Tens of minutes.

``large``: LightGCN, one epoch through ``fit`` over a generated graph (1 M users, 200 k items with Zipf-like popularity,
10 M interactions), in batches of ``--batch``; with ``--steps`` only so many, and the epoch is extrapolated. A step
propagates over the whole graph, so 2,048 triples a step would be 4,883 of them. Target: it ends, peak memory under 16
GiB.
"""

import argparse
import importlib.util
import resource
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
from limits import Limit, judged
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional

from genrec_bench.benchmark.evaluate import validation_ranks
from genrec_bench.benchmark.execute import _keep_freed_memory
from genrec_bench.benchmark.protocols import Full, selection_value
from genrec_bench.datasets import store
from genrec_bench.datasets.interactions import Histories, TrainView
from genrec_bench.methods import registry
from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.base import Context, Method
from genrec_bench.methods.checkpoint import Checkpoint
from genrec_bench.methods.encoders.graph import GraphModel, bpr_loss
from genrec_bench.methods.encoders.lightgcn import LightGCN, LightGCNConfig
from genrec_bench.methods.encoders.propagation import normalised_adjacency

TIMES_FASTER = 2.0


class Ours:
    """LightGCN as `train_epochs` trains it, on one back end."""

    def __init__(self, train: TrainView, config: LightGCNConfig, backend: str):
        self.model = GraphModel(train, config, backend=backend)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, weight_decay=0.0, fused=True
        )

    def loss(self, triple: Tensor) -> Tensor:
        return bpr_loss(self.model, self.model(), triple)


class Plain:
    """LightGCN as most repositories write it."""

    def __init__(self, train: TrainView, config: LightGCNConfig, like: GraphModel):
        self.config, self.sizes = config, [train.num_users, train.num_items]
        start = like.split(like.layer0.detach().clone())
        self.users, self.items = (nn.Embedding.from_pretrained(part.clone(), freeze=False) for part in start)
        adjacency = normalised_adjacency(like.edges, *self.sizes)
        self.matrix = adjacency.to_sparse().to_sparse_coo().coalesce()
        parameters = [self.users.weight, self.items.weight]
        self.optimiser = torch.optim.Adam(parameters, lr=config.learning_rate)

    def loss(self, triple: Tensor) -> Tensor:
        user, positive, negative = triple
        nodes = torch.cat([self.users.weight, self.items.weight])
        layers = [nodes]
        for _ in range(self.config.layers):
            nodes = torch.sparse.mm(self.matrix, nodes)
            layers.append(nodes)
        users, items = torch.stack(layers, dim=1).mean(dim=1).split(self.sizes)
        scores = [(users[user] * items[item]).sum(1) for item in (positive, negative)]
        own = [self.users(user), self.items(positive), self.items(negative)]
        squares = sum(vectors.square().sum() for vectors in own) / len(user)
        return -functional.logsigmoid(scores[0] - scores[1]).mean() + self.config.regularisation / 2 * squares


def epoch(rival: Ours | Plain, sampler: GraphModel, seed: int, steps: int | None) -> tuple[float, float, float]:
    """Wall and processor seconds of an epoch, sampling included, and its mean loss."""
    started, started_cpu = time.perf_counter(), time.process_time()
    taken = []
    for triple in islice(sampler.triples(np.random.default_rng([0, seed])), steps):
        rival.optimiser.zero_grad(set_to_none=True)
        loss = rival.loss(triple)
        loss.backward()
        rival.optimiser.step()
        taken.append(loss.detach())
    return time.perf_counter() - started, time.process_time() - started_cpu, float(torch.stack(taken).mean())


def compare_epochs(train: TrainView, repeats: int, steps: int | None) -> None:
    config = LightGCNConfig(dim=64, layers=3)
    backends = ["bag", "sparse", *(["dgl"] if importlib.util.find_spec("dgl") else [])]
    ours = {}
    for backend in backends:
        torch.manual_seed(0)
        ours[f"ours, {backend}"] = Ours(train, config, backend)
    sampler = ours["ours, bag"].model
    rivals: dict[str, Ours | Plain] = {"plain torch.sparse": Plain(train, config, sampler), **ours}
    spent: dict[str, list[tuple[float, float, float]]] = {name: [] for name in rivals}
    for turn in range(repeats):
        for name, rival in rivals.items():
            spent[name].append(epoch(rival, sampler, turn, steps))
    seconds = {name: [median(column) for column in zip(*of, strict=True)] for name, of in spent.items()}
    base_wall, base_cpu, _ = seconds["plain torch.sparse"]
    rows = [
        [name, wall, base_wall / wall, cpu, base_cpu / cpu, spent[name][-1][2]]
        for name, (wall, cpu, _) in seconds.items()
    ]
    headers = ["LightGCN", "s an epoch", "times faster", "CPU s", "times less", "mean loss, last epoch"]
    size = f"{train.num_users:,} users, {train.num_items:,} items, {sampler.edges.shape[1]:,} edges"
    print(f"{size}, {steps or 'all'} steps an epoch")
    print(tabulate(rows, headers, floatfmt=("", ".2f", ".2f", ".2f", ".2f", ".6f")))
    raise SystemExit(judged(Limit("times faster", base_wall / seconds["ours, bag"][0], TIMES_FASTER, at_least=True)))


def context_of(validate, folder: str, log=lambda **values: None) -> Context:  # type: ignore[no-untyped-def]
    return Context(0, "cpu", "tiny", Checkpoint(None), ArtefactCache(Path(folder)), validate, log)


def time_to_best(dataset: str, methods: list[str]) -> None:
    rules, data = Full(), store.load(dataset)
    split = rules.split(data)

    def validate(method: Method, users: int = 0) -> float:
        return selection_value(rules, validation_ranks(method, split.valid, rules, data.num_items))

    rows = []
    for name in methods:
        torch.manual_seed(0)
        method = registry.get(name)()
        started = time.perf_counter()
        history: list[tuple[float, float, int]] = []

        def log(**values) -> None:  # type: ignore[no-untyped-def]
            if "epoch" in values:
                history.append((values["validation"], time.perf_counter() - started, values["epoch"]))  # noqa: B023
                print(name, *history[-1], flush=True)  # noqa: B023

        with tempfile.TemporaryDirectory() as folder:
            method.fit(split.train, context_of(validate, folder, log))
        best = max(history, key=lambda one: (one[0], -one[2]))
        rows.append([name, best[0], best[1], best[2], history[-1][1], history[-1][2]])
    headers = ["method", "NDCG@10 (validation)", "s to best", "epochs to best", "s in all", "epochs in all"]
    print(tabulate(rows, headers, floatfmt=("", ".4f", ".0f", "d", ".0f", "d")))


def generated(users: int, items: int, interactions: int) -> TrainView:
    """Users with equally many interactions, items drawn with probability proportional to 1 / (rank + 10)."""
    rng = np.random.default_rng(0)
    share = np.cumsum(1.0 / (np.arange(items) + 10))
    drawn = np.searchsorted(share, rng.random(interactions) * share[-1]).astype(np.int32)
    offsets = np.linspace(0, interactions, users + 1).astype(np.int64)
    return TrainView(users, pd.DataFrame(index=range(items)), Histories(np.arange(users), offsets, drawn))


class SomeSteps(LightGCN):
    """LightGCN that stops after ``steps`` steps of an epoch and notes how long they took."""

    steps: int | None = None

    def _step_losses(self, rng: np.random.Generator) -> Iterator[Tensor]:
        self.times: list[tuple[float, float]] = []  # wall and processor clock
        for loss in islice(super()._step_losses(rng), self.steps):
            yield loss
            self.times.append((time.perf_counter(), time.process_time()))


def large(train: TrainView, layers: int, batch: int, steps: int | None) -> None:
    started, started_cpu = time.perf_counter(), time.process_time()
    method = SomeSteps(LightGCNConfig(dim=64, layers=layers, batch_size=batch, epochs=1))
    method.steps = steps
    with tempfile.TemporaryDirectory() as folder:
        method.fit(train, context_of(lambda method, users=0: 0.0, folder))
    spent, spent_cpu = time.perf_counter() - started, time.process_time() - started_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    edges = method.model.edges.shape[1]
    wanted, done = -(-edges // batch), len(method.times)
    a_step, a_step_cpu = np.subtract(method.times[-1], method.times[0]) / max(done - 1, 1)
    print(f"{train.num_users:,} users, {train.num_items:,} items, {edges:,} edges, 64 wide, {layers} layers")
    print(f"{done} of {wanted} steps of {batch:,} triples, {a_step:.1f} s each (CPU {a_step_cpu:.1f} s)")
    left = wanted - done
    print(f"an epoch{', extrapolated' if left else ''}: {spent + left * a_step:.0f} s", end=" ")
    print(f"(CPU {spent_cpu + left * a_step_cpu:.0f} s), graph and sampling included")
    print(f"peak memory {peak:.2f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("epoch", "best", "large"), default="epoch")
    parser.add_argument("--dataset", default="amazon2014-beauty")
    parser.add_argument("--methods", default="lightgcn,sgl,xsimgcl")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--interactions", type=int, default=10_000_000)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=262_144)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.steps is not None and options.steps < 2:
        parser.error("--steps: at least 2, the time between them counts")
    torch.set_num_threads(options.threads)
    _keep_freed_memory()
    if options.part == "epoch":
        compare_epochs(Full().split(store.load(options.dataset)).train, options.repeats, options.steps)
    elif options.part == "best":
        time_to_best(options.dataset, options.methods.split(","))
    else:
        large(
            generated(options.users, options.items, options.interactions), options.layers, options.batch, options.steps
        )


if __name__ == "__main__":
    main()
