"""The contract suite: what every method must do, tried on a small synthetic data set in well under a minute.

    genrec-bench check my_method.py

The same checks run over our own methods in tests/test_contract_methods.py. A method that only picks among candidates is
asked under the candidate protocol instead of the full one.
"""

import gc
import random
import resource
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from genrec_bench.benchmark.evaluate import MethodFault, check_choice, evaluate
from genrec_bench.benchmark.execute import raised
from genrec_bench.benchmark.protocols import Cand20, Full, ProtocolRules
from genrec_bench.datasets import synthetic
from genrec_bench.datasets.interactions import Histories, InteractionData, TrainView
from genrec_bench.datasets.splits import HeldOut, Split
from genrec_bench.methods import registry
from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.base import Choice, Context, Method, MethodConfig, Ranking
from genrec_bench.methods.checkpoint import Checkpoint

K = 10
SCORE_TOLERANCE = 1e-4  # float32 sums in another order
RISING_VALIDATIONS = 5  # more than the validations before the last kill


class ContractBroken(Exception):
    """A check failed; the message says what was expected and what came."""


class _Killed(BaseException):
    """Stands for a kill in the middle of training."""


@dataclass(frozen=True)
class Questions:
    """Histories, and (B, C) candidates where the method picks among some; no target."""

    histories: Histories
    candidates: np.ndarray | None

    def select(self, rows: np.ndarray | slice) -> "Questions":
        """The given rows, in the given order."""
        return Questions(self.histories.select(rows), None if self.candidates is None else self.candidates[rows])

    def put(self, method: Method) -> Ranking | Choice:
        """What the method answers."""
        if self.candidates is None:
            return method.recommend(self.histories, K)
        return method.choose(self.histories, self.candidates.copy())


@dataclass
class Bench:
    """A method class, the data it is tried on, and a folder that is thrown away."""

    cls: type[Method]
    config: MethodConfig
    data: InteractionData
    folder: Path
    number: int = 0

    @property
    def rules(self) -> ProtocolRules:
        """The protocol under which the method is asked."""
        return Full() if self.cls.full_protocol() else Cand20()

    def split(self) -> Split:
        """The data under those rules, made anew."""
        return self.rules.split(self.data)

    def context(self, split: Split, kill_after: int | None = None, folder: Path | None = None) -> Context:
        """A context on the CPU; ``kill_after`` validations the process "dies".

        A ``folder`` has artefacts of its own: what other fits left would spare the training that is to be killed.
        """
        self.number += 1
        judge = _Judge(split.valid, kill_after)
        return Context(
            seed=0,
            device="cpu",
            scale="tiny",
            checkpoint=_JudgedCheckpoint(folder or self.folder / f"run{self.number}", judge),
            artefacts=ArtefactCache((folder or self.folder) / "artefacts"),
            validate=judge,
        )

    def fitted(self, split: Split, context: Context | None = None) -> Method:
        """A new instance, trained under seed 0."""
        random.seed(0)
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - as the harness does
        method = self.cls(self.config)
        method.fit(_read_only(split), context or self.context(split))
        return method


class _Judge:
    """``context.validate`` whose answers depend on how often it was asked, never on the targets it holds.

    They rise for a while: a method that keeps its best epoch keeps one that comes after the kills. Each part of a
    method made of others has a count of its own: a part that is found trained is not asked about. It holds real
    targets all the same: a method that digs them out gets other ones when they are poisoned.
    """

    def __init__(self, valid: HeldOut, kill_after: int | None):
        self.valid = valid
        self.asked: Counter[str] = Counter()  # by class
        self._left = kill_after

    def __call__(self, method: Method, users: int = 0) -> float:
        if self._left == 0:
            raise _Killed
        self._left = None if self._left is None else self._left - 1
        part = type(method).__name__
        self.asked[part] += 1
        return min(self.asked[part], RISING_VALIDATIONS) / 10


class _JudgedCheckpoint(Checkpoint):
    """Keeps with the training state how often validation had been asked: resumed, it answers on from there."""

    def __init__(self, folder: Path, judge: _Judge):
        super().__init__(folder, every_s=0.0)
        self._folder, self._judge = folder, judge

    def save(self, state: dict[str, Any]) -> None:
        super().save({"state": state, "asked": dict(self._judge.asked)})

    def load(self) -> dict[str, Any] | None:
        saved = super().load()
        if saved is None:
            return None
        self._judge.asked = Counter(saved["asked"])
        state: dict[str, Any] = saved["state"]
        return state

    def beside(self, name: str) -> Checkpoint:
        stage = _JudgedCheckpoint(self._folder / name, self._judge)
        self._stages.append(stage)
        return stage


def _read_only(split: Split) -> TrainView:
    """The training view, with arrays that a method cannot change under the others' feet."""
    train = split.train
    for array in (train.sequences.items, train.sequences.offsets, train.sequences.users):
        array.setflags(write=False)
    return train


def check_methods(target: str, say: Callable[[str], None]) -> bool:
    """Check the methods that the file ``target`` registers, or the one of that name. Returns whether all passed."""
    found = list(registry.load_plugin(target)) if target.endswith(".py") else [target]
    passed = [check_method(registry.get(name), name, say) for name in found]  # every one, even after a failure
    return all(passed)


def check_method(cls: type[Method], name: str, say: Callable[[str], None], config: MethodConfig | None = None) -> bool:
    """Run every check on one class; prints a line a check. Returns whether all passed."""
    folder = Path(tempfile.mkdtemp(prefix="genrec-bench-check-"))
    started = time.perf_counter()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on so little data more threads only wait for each other
    libraries = threadpool_limits(1)
    passed = True
    try:
        data = synthetic.generate(num_users=150, num_items=80, seed=7)
        bench = Bench(cls, config or cls.Config(), data, folder)
        for title, check in _checks(bench):
            try:
                check(bench)
                say(f"ok      {title}")
            except (ContractBroken, MethodFault) as error:
                passed = False
                say(f"BROKEN  {title}: {error}")
            except Exception as error:
                passed = False
                say(f"BROKEN  {title}: {raised(error)}")
    finally:
        libraries.restore_original_limits()
        torch.set_num_threads(threads)
        shutil.rmtree(folder, ignore_errors=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    verdict = "passes" if passed else "does NOT pass"
    say(f"{name} {verdict} the contract suite: {time.perf_counter() - started:.1f} s, peak memory {peak:.0f} MiB")
    return passed


def _checks(bench: Bench) -> Iterator[tuple[str, Callable[[Bench], None]]]:
    yield "unknown config keys are rejected", _rejects_unknown_keys
    if bench.cls.full_protocol():
        yield "k unique valid items for every history", _valid_answers
        yield "seen items are left out when the protocol masks them", _masks_seen
    yield "same seed, same answer", _same_seed
    yield "answers do not depend on the other rows", _rows_independent
    yield "no held-out item reaches fit (poisoned targets change nothing)", _no_held_out
    yield "a loaded method answers as the saved one", _save_load
    yield "killed and resumed training gives the same answer", _resumes
    if bench.cls.candidate_protocol():
        yield "candidate protocol: valid picks, same seed same answer", _candidates


def _rejects_unknown_keys(bench: Bench) -> None:
    try:
        bench.cls.Config(**{"no_such_key": 1})
    except ValueError:
        return
    raise ContractBroken("Config accepted the key 'no_such_key'; derive it from MethodConfig")


def _valid_answers(bench: Bench) -> None:
    split = Full().split(bench.data)
    method = bench.fitted(split)
    evaluate(method, split.test, Full(), bench.data.num_items)
    one = split.test.histories.select(slice(0, 1))
    for k in (1, bench.data.num_items):
        ranking = method.recommend(one, k)
        if ranking.items.shape != (1, k):
            raise ContractBroken(f"recommend of one history with k={k} returned shape {ranking.items.shape}")


def _masks_seen(bench: Bench) -> None:
    split = Full().split(bench.data)
    evaluate(bench.fitted(split), split.test, Full(mask_seen=True), bench.data.num_items)


def _questions(held_out: HeldOut) -> Questions:
    return Questions(held_out.histories, held_out.candidates)


def _same_seed(bench: Bench) -> None:
    split = bench.split()
    asked = _questions(split.test)
    first, second = (asked.put(bench.fitted(split)) for _ in range(2))
    _equal(first, second, "two trainings with the same seed")


def _rows_independent(bench: Bench) -> None:
    split = bench.split()
    method, asked = bench.fitted(split), _questions(split.test)
    together = asked.put(method)
    backwards = np.arange(len(asked.histories))[::-1][:40]
    alone = asked.select(backwards).put(method)
    if isinstance(together, Choice) and isinstance(alone, Choice):
        changed = int((together.picked[backwards] != alone.picked).sum())
        if changed and alone.scores is None:  # scores that are nearly tied may change their order
            raise ContractBroken(f"{changed} of {len(backwards)} picks change when they are asked in another batch")
    if together.scores is None or alone.scores is None:
        return
    difference = np.abs(together.scores[backwards] - alone.scores)
    difference = difference[np.isfinite(difference)]
    largest = np.abs(alone.scores[np.isfinite(alone.scores)]).max(initial=1.0)
    if difference.size and difference.max() > SCORE_TOLERANCE * largest:
        raise ContractBroken(f"scores of a history change by {difference.max():.3g} when it is asked in another batch")


def _no_held_out(bench: Bench) -> None:
    split = bench.split()
    # Candidates are drawn around the target, so they are those of before the poison, asked with a history they fit.
    full = bench.cls.full_protocol()
    asked = Questions(split.train.sequences, None) if full else _questions(split.test)
    del split
    gc.collect()  # no split of an earlier training is left: a digger finds this one's held-out items or none
    first = _fit_and_ask(bench, asked)
    with poisoned(bench.data, bench.rules):
        second = _fit_and_ask(bench, asked)
    _equal(first, second, "trainings that differ in held-out items only")


def _fit_and_ask(bench: Bench, asked: Questions) -> Ranking | Choice:
    """Fit with held-out items in reach of a method that digs for them (frames, garbage collector)."""
    split = bench.split()
    return asked.put(bench.fitted(split))


@contextmanager
def poisoned(data: InteractionData, rules: ProtocolRules | None = None) -> Iterator[None]:
    """The same training part, other validation and test items; in place, so that the true ones are nowhere to find."""
    items, held_out = data.sequences.items, _held_out_positions(data, rules or Full())
    items[held_out] = (items[held_out] + data.num_items // 2) % data.num_items
    try:
        yield
    finally:
        items[held_out] = (items[held_out] - data.num_items // 2) % data.num_items


def _held_out_positions(data: InteractionData, rules: ProtocolRules) -> np.ndarray:
    """Where in the sequences the targets stand."""
    last = data.sequences.offsets[1:] - 1
    if isinstance(rules, Full):
        return np.concatenate([last, last - 1])
    split = rules.split(data)
    return last[np.concatenate([split.valid.histories.users, split.test.histories.users])]


def _save_load(bench: Bench) -> None:
    split = bench.split()
    method = bench.fitted(split)
    folder = bench.folder / "saved"
    folder.mkdir()
    method.save(folder)
    pickles = [path.name for path in folder.rglob("*") if path.suffix in (".pkl", ".pickle")]
    if pickles:
        raise ContractBroken(f"save wrote a pickle ({pickles[0]}): use safetensors, npz or JSON")
    loaded = bench.cls(bench.config)
    loaded.load(folder, split.train, bench.context(split))
    asked = _questions(split.test)
    _equal(asked.put(method), asked.put(loaded), "the saved and the loaded method")


def _resumes(bench: Bench) -> None:
    split = bench.split()
    undisturbed = bench.fitted(split)
    folder = bench.folder / "killed"
    for kill_after in (1, 2):
        try:
            bench.fitted(split, bench.context(split, kill_after, folder))
        except _Killed:
            continue
    resumed = bench.fitted(split, bench.context(split, folder=folder))
    asked = _questions(split.test)
    _equal(asked.put(undisturbed), asked.put(resumed), "an undisturbed and a resumed training")


def _candidates(bench: Bench) -> None:
    rules: ProtocolRules = Cand20()
    split = rules.split(bench.data)
    candidates = split.test.candidates
    assert candidates is not None
    first, second = (bench.fitted(split).choose(split.test.histories, candidates.copy()) for _ in range(2))
    check_choice(first, candidates)
    if not np.array_equal(first.picked, second.picked):
        raise ContractBroken("two trainings with the same seed pick other candidates")


def _equal(first: Ranking | Choice, second: Ranking | Choice, what: str) -> None:
    if isinstance(first, Choice) or isinstance(second, Choice):
        _equal_picks(first, second, what)
        return
    rows = (first.items != second.items).any(1)
    if rows.any():
        raise ContractBroken(f"{what} give different lists for {int(rows.sum())} of {len(rows)} histories")
    if not np.array_equal(first.scores, second.scores):
        raise ContractBroken(f"{what} give different scores")


def _equal_picks(first: Ranking | Choice, second: Ranking | Choice, what: str) -> None:
    assert isinstance(first, Choice)
    assert isinstance(second, Choice)
    rows = first.picked != second.picked
    if rows.any():
        raise ContractBroken(f"{what} pick other candidates for {int(rows.sum())} of {len(rows)} histories")
    given = [one.scores for one in (first, second) if one.scores is not None]
    if len(given) == 1 or (given and not np.array_equal(given[0], given[1])):
        raise ContractBroken(f"{what} give different scores")
