"""Ways to train the same decoder-only TIGER: cost of an epoch, and training time to equal quality.

    .venv/bin/python benchmarks/training.py [--dataset amazon2014-beauty] [--index codes.json.gz] [--threads 1]

``sequence`` learns every item of a user's sequence in one pass, ``prefix`` has one example a prefix, both packed into
rows without padding; ``padded_prefix`` has one prefix a row, padded to the longest of its batch, as the methods' own
repositories train. All have the same targets an epoch. The index is a published file, else ``residual`` of the titles.

Epochs: positions are counted over a whole epoch, padding included. Seconds are those of making all its batches, and of
``--sample`` steps (forward, backward, optimiser) scaled to the epoch's positions, each mode after a warm-up. An epoch
of at most that many steps is measured whole.

Time to ``--goal`` (NDCG@10 on the validation targets of ``--users`` users): ``sequence`` and ``padded_prefix`` train
side by side in one process, whoever has trained less taking the next slice of about ``--slice`` seconds, which ends
with a validation. Counted: training, batches included, validations not. The learning rate is constant after
``--warmup`` steps, so that it does not depend on how long a side will take; the other settings are TIGER's own, but for
reading and writing codes with two matrices, which learns in far fewer epochs. The rival may have a rate and a batch
that suit it better (TIGER's 256 rows a step are about 21,000 positions). It ends when both are there, or the slower has
had ``--cap`` times the other's time: the ratio is then a lower bound.
Target: 6 or more on Beauty. Only ratios of one run count; on a busy machine use ``--threads 1``.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from genrec_bench.benchmark.evaluate import validation_ranks
from genrec_bench.benchmark.protocols import Full, selection_value
from genrec_bench.datasets import store
from genrec_bench.datasets.interactions import TrainView
from genrec_bench.datasets.splits import HeldOut
from genrec_bench.methods import registry
from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.base import Context, Method
from genrec_bench.methods.checkpoint import Checkpoint
from genrec_bench.methods.language.batches import Packed
from genrec_bench.methods.language.training import train_language_model
from genrec_bench.methods.tiger import Tiger

MODES = ("sequence", "prefix", "padded_prefix")
OURS, RIVAL = "sequence", "padded_prefix"
TARGET_RATIO = 6.0
WARM_UP = 3  # steps


class Untrained(Tiger):
    """TIGER with its index and model made, and its training left to this benchmark."""

    def train(self, train: TrainView, context: Context) -> None:
        self.sequences = train.sequences

    def epoch(self, number: int) -> Iterator[Packed]:
        """The batches of an epoch, as TIGER makes them."""
        for batch in self._batches(self.sequences, np.random.default_rng([0, number])):
            assert isinstance(batch, Packed)  # decoder-only
            yield batch

    def learn(self, config: Any, context: Context, epochs: Any) -> None:
        """`train_language_model` on what ``epochs(rng)`` gives."""
        train_language_model(self.model, self, epochs, self.loss(), config, context)


def make(mode: str, train: TrainView, context: Context, options: argparse.Namespace) -> Untrained:
    """The same model and index for every mode."""
    index = {"builder": "file", "path": options.index} if options.index else {"builder": "residual"}
    rate, positions = options.learning_rate, options.batch_tokens
    if mode == RIVAL:
        rate, positions = options.rival_learning_rate or rate, options.rival_batch_tokens or positions
    values = {
        "architecture": "decoder_only", "examples": mode, "index": index, "layers": options.layers,
        "width": options.width, "batch_tokens": positions, "bf16": options.bf16,
        "learning_rate": rate, "tied": False, "max_history": options.max_history, "epochs": 2, "min_rate": 0.999,
    }  # fmt: skip
    torch.manual_seed(0)
    method = Untrained(registry.configure("tiger", values))
    method.fit(train, context)
    return method


@dataclass
class Cost:
    """What an epoch of one mode takes."""

    positions: int = 0
    targets: int = 0
    steps: int = 0
    measured: int = 0  # steps
    batches_s: float = 0.0
    steps_s: float = 0.0  # of all steps, scaled up from those measured

    @property
    def seconds(self) -> float:
        return self.batches_s + self.steps_s


def cost(method: Untrained, context: Context, sample: int) -> Cost:
    """Count one epoch's positions; time its batches and a sample of its steps."""
    found = Cost()
    kept: list[Packed] = []
    started = time.perf_counter()
    for batch in method.epoch(0):
        found.positions += batch.tokens.numel()
        found.targets += int((batch.levels >= 0).sum())
        found.steps += 1
        if len(kept) < sample:  # the first ones are a random sample: batches come in random order
            kept.append(batch)
    found.batches_s, found.measured = time.perf_counter() - started, len(kept)
    calls = iter([kept, kept[:WARM_UP], kept])  # counted, warm-up, measured
    timed: list[float] = []

    def log(**event: Any) -> None:
        timed.append(event.get("train_s", 0.0))

    watched = Context(0, context.device, "tiny", Checkpoint(None), context.artefacts, lambda method, users=0: 0.5, log)
    method.learn(method.config, watched, lambda rng: iter(next(calls)))
    positions = sum(batch.tokens.numel() for batch in kept)
    found.steps_s = timed[-1] * found.positions / max(positions, 1)
    return found


def epochs_table(costs: dict[str, Cost]) -> str:
    base = costs[OURS]
    rows = [
        [mode, of.positions, of.positions / base.positions, of.targets, of.steps, of.measured, of.batches_s,
         of.seconds, of.seconds / base.seconds]
        for mode, of in costs.items()
    ]  # fmt: skip
    headers = ["examples", "positions", "x", "targets", "steps", "measured", "batches s", "epoch s", "x"]
    return tabulate(rows, headers, floatfmt=("", ",.0f", ".1f", ",.0f", ",.0f", ".0f", ".2f", ".1f", ".1f"))


class Over(Exception):
    """Raised from a validation when a side has nothing more to do."""


class Race:
    """Two sides that train in turns. Each is a thread, and one thread runs at a time."""

    def __init__(self, goal: float, cap: float, limit_s: float):
        self.goal, self.cap, self.limit_s = goal, cap, limit_s
        self.sides: list[Side] = []
        self._turn = threading.Condition()
        self._running: Side | None = None

    def run(self) -> None:
        """Until every side is over; an error of one is raised here."""
        threads = [threading.Thread(target=side.run, daemon=True) for side in self.sides]
        self._running = self.sides[0]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for side in self.sides:
            if side.error is not None:
                raise side.error

    def wait(self, side: "Side") -> None:
        """Until it is ``side``'s turn."""
        with self._turn:
            self._turn.wait_for(lambda: self._running is side)

    def next(self) -> None:
        """The turn goes to the side that has trained least."""
        with self._turn:
            going = [side for side in self.sides if not side.over]
            self._running = min(going, key=lambda side: side.trained_s) if going else None
            self._turn.notify_all()

    def worth_it(self, side: "Side") -> bool:
        """Whether ``side`` may go on: not there yet, and within the cap on another's time or on its own."""
        if side.reached_s is not None:
            return False
        others = [other.reached_s for other in self.sides if other.reached_s is not None]
        return side.trained_s < min([self.cap * seconds for seconds in others], default=self.limit_s)


@dataclass
class Side:
    """One way of training, and where it stands."""

    method: Untrained
    race: Race
    valid: HeldOut
    num_items: int
    steps: int  # of a slice
    context: Context
    warmup: int  # steps
    threads: int
    trained_s: float = 0.0
    reached_s: float | None = None
    over: bool = False
    error: Exception | None = None
    curve: list[tuple[float, float]] = field(default_factory=list)  # (seconds trained, NDCG@10)

    def run(self) -> None:
        """Train in slices, each an "epoch" of the training loop, until the race is over for this side."""
        torch.set_num_threads(self.threads)  # a setting of each thread
        self.race.wait(self)
        slices = 100_000
        config = self.method.config.model_copy(
            update={"epochs": slices, "patience": slices, "warmup": self.warmup / (slices * self.steps)}
        )
        context = Context(
            0, self.context.device, "tiny", Checkpoint(None), self.context.artefacts, self.validate, self.log
        )
        stream = (batch for number in count() for batch in self.method.epoch(number))
        try:
            self.method.learn(config, context, lambda rng: islice(stream, self.steps))
        except Over:
            pass
        except Exception as error:
            self.error = error
        self.over = True
        self.race.next()

    def validate(self, method: Method, users: int = 0) -> float:
        """NDCG@10, outside the time that counts."""
        value = selection_value(Full(), validation_ranks(method, self.valid, Full(), self.num_items))
        self.curve.append((0.0, value))
        return value

    def log(self, **event: Any) -> None:
        """A slice is done: note it, and let the other have its turn."""
        self.trained_s += event["train_s"]
        self.curve[-1] = (self.trained_s, self.curve[-1][1])
        value = self.curve[-1][1]
        if value >= self.race.goal:
            self.reached_s = self.trained_s
        print(f"{self.method.config.examples}: {self.trained_s:.0f} s, NDCG@10 {value:.4f}", flush=True)
        if not self.race.worth_it(self):
            raise Over
        self.race.next()
        self.race.wait(self)
        if not self.race.worth_it(self):  # the other has got there meanwhile
            raise Over


def verdict(ours: Side, rival: Side) -> str:
    """Both sides' seconds and their ratio."""
    if ours.reached_s is None:
        return f"{OURS} did not reach the goal in {ours.trained_s:.0f} s: nothing to compare; lower --goal"
    there = rival.reached_s is not None
    seconds = rival.trained_s if rival.reached_s is None else rival.reached_s
    best = max((value for _, value in rival.curve), default=0.0)
    end = f"{seconds:.0f} s" if there else f"not within {seconds:.0f} s (NDCG@10 {best:.4f} by then)"
    bound = "" if there else "more than "
    return (
        f"{OURS}: {ours.reached_s:.0f} s; {RIVAL}: {end}\n"
        f"ratio: {bound}{seconds / ours.reached_s:.1f} (target {TARGET_RATIO:g} or more)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="amazon2014-beauty", help="a prepared one")
    parser.add_argument("--index", help="a published index file")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--max-history", type=int, default=20)
    parser.add_argument("--batch-tokens", type=int, default=4096, help="positions a step")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--rival-batch-tokens", type=int, help=f"of {RIVAL}; as the others if not given")
    parser.add_argument("--rival-learning-rate", type=float, help="the same")
    parser.add_argument("--no-bf16", dest="bf16", action="store_false")
    parser.add_argument("--sample", type=int, default=20, help="steps that are timed")
    parser.add_argument("--epochs-only", action="store_true", help="no training to the goal")
    parser.add_argument("--goal", type=float, default=0.02, help="validation NDCG@10")
    parser.add_argument("--users", type=int, default=2000, help="whose validation targets count; 0: all")
    parser.add_argument("--cap", type=float, default=8.0, help="times the faster side's time")
    parser.add_argument("--limit", type=float, default=7200.0, help="seconds of a side while none is there")
    parser.add_argument("--slice", type=float, default=30.0, help="seconds of training between validations")
    parser.add_argument("--warmup", type=int, default=100, help="steps")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = store.load(options.dataset)
    split = Full().split(data)
    with tempfile.TemporaryDirectory() as folder:
        context = Context(0, "cpu", "tiny", Checkpoint(None), ArtefactCache(Path(folder)), lambda method, users=0: 0.5)
        costs = {mode: cost(make(mode, split.train, context, options), context, options.sample) for mode in MODES}
        print(f"{options.dataset}: {data.num_users} users, {data.num_items} items, {options.threads} threads")
        print(epochs_table(costs), flush=True)
        if options.epochs_only:
            return
        race = Race(options.goal, options.cap, options.limit)
        valid = split.valid.sample(options.users) if options.users else split.valid
        for mode in (OURS, RIVAL):
            of = costs[mode]
            steps = max(round(options.slice / of.seconds * of.steps), 1)
            race.sides.append(
                Side(
                    make(mode, split.train, context, options), race, valid, data.num_items, steps, context,
                    options.warmup, options.threads,
                )
            )  # fmt: skip
        race.run()
    print(verdict(*race.sides))


if __name__ == "__main__":
    main()
