"""The contract suite catches each way of breaking the contract on the right line."""

import gc
import os
import sys
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import rows_of
from pydantic import ConfigDict
from threadpoolctl import threadpool_info, threadpool_limits

from genrec_bench.benchmark import contract
from genrec_bench.benchmark.contract import check_method, check_methods
from genrec_bench.datasets import synthetic
from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.interactions import Histories, InteractionData
from genrec_bench.datasets.splits import HeldOut, Split, leave_one_out
from genrec_bench.methods.base import Choice, Method, MethodConfig, Ranking
from genrec_bench.methods.popularity import Popularity
from genrec_bench.methods.scoring import Scorer

KEYS, ANSWERS, MASK, SEED, ROWS = (
    "unknown config",
    "k unique valid",
    "seen items are left out",
    "  same seed",
    "other rows",
)
HELD_OUT, LOAD, RESUME, CANDIDATES = "no held-out item", "a loaded method", "killed and resumed", "candidate protocol"


class Mutable(MethodConfig):
    model_config = ConfigDict(extra="allow")


class AcceptsAnything(Popularity):
    Config = Mutable


class WalksFrames(Popularity):
    """Climbs to whoever holds the split and counts the test targets in."""

    def fit(self, train, context):
        super().fit(train, context)
        frame = sys._getframe()
        while frame is not None:
            for value in list(frame.f_locals.values()):
                if isinstance(value, Split):
                    self.popularity += np.bincount(value.test.targets, minlength=train.num_items)
            frame = frame.f_back


def _collected(kind):
    return [found for found in gc.get_objects() if type(found) is kind]


class CollectsValidation(Popularity):
    """Finds the validation targets through the garbage collector."""

    def fit(self, train, context):
        super().fit(train, context)
        for held_out in _collected(HeldOut):
            self.popularity += np.bincount(held_out.targets, minlength=train.num_items)


class CollectsTheData(Popularity):
    """Finds the whole data set, the first one that fits."""

    def fit(self, train, context):
        super().fit(train, context)
        whole = next(one for one in _collected(InteractionData) if one.num_users == train.num_users)
        self.popularity += np.bincount(whole.sequences.items, minlength=train.num_items)


class AsksTheJudge(Popularity):
    """Takes the validation targets out of the function it may call."""

    def fit(self, train, context):
        super().fit(train, context)
        self.popularity += np.bincount(context.validate.valid.targets, minlength=train.num_items)


class Unseeded(Popularity):
    def fit(self, train, context):
        self.popularity = np.random.default_rng().random(train.num_items, dtype=np.float32)


class Clock(Popularity):
    def score(self, histories):
        return super().score(histories) + time.monotonic_ns() % 1009 * np.arange(len(self.popularity), dtype=np.float32)


class NaN(Popularity):
    def score(self, histories):
        scores = super().score(histories)
        scores[:, 3] = np.nan
        return scores


class Changed(Popularity):
    """A ranking that is changed on its way out."""

    def recommend(self, histories, k):
        ranking = super().recommend(histories, k)
        return Ranking(self.change(ranking.items, ranking.scores), ranking.scores)


class Repeats(Changed):
    def change(self, items, scores):
        items[:, -1] = items[:, 0]
        return items


class Unknown(Changed):
    def change(self, items, scores):
        items[:, 0] = 80
        return items


class TooFew(Changed):
    def change(self, items, scores):
        return items[:, :-1]


class Short(Popularity):
    """Answers at most five items and says nothing of the rest."""

    def recommend(self, histories, k):
        return super().recommend(histories, min(k, 5))


class IgnoresMask(Popularity):
    def recommend(self, histories, k):
        scores = torch.from_numpy(self.score(histories))
        best = torch.topk(scores, k)
        return Ranking(best.indices.numpy(), best.values.numpy())


class Rising(Popularity):
    def recommend(self, histories, k):
        ranking = super().recommend(histories, k)
        return Ranking(ranking.items[:, ::-1], ranking.scores[:, ::-1])


class ForgetsToSave(Popularity):
    def load(self, folder, train, context):
        self.popularity = np.ones(train.num_items, np.float32)


class SavesPickles(Popularity):
    def save(self, folder):
        super().save(folder)
        (folder / "model.pkl").touch()


class Mutates(Popularity):
    def fit(self, train, context):
        super().fit(train, context)
        train.sequences.items[::2] = 0


class BatchDependent(Popularity):
    def score(self, histories):
        return super().score(histories) * (1 + len(histories) / 1000)


class BatchDependentWithInfinities(BatchDependent):
    """Rules an item out as well: that must not hide the difference."""

    def score(self, histories):
        scores = super().score(histories)
        scores[:, 10:] = -np.inf
        return scores


class Epochs(Scorer):
    """Learns by random steps; ``restore`` is what a subclass takes back from the checkpoint."""

    def fit(self, train, context):
        self.weights, epoch, best = torch.zeros(train.num_items), 0, (-1.0, None)
        saved = context.checkpoint.load()
        if saved is not None:
            self.weights, epoch, best = self.restore(saved)
        while epoch < 7:
            self.weights = self.weights * 0.9 + torch.rand(train.num_items)
            score, epoch = context.validate(self), epoch + 1
            if score > best[0]:
                best = (score, self.weights.clone())
            if context.checkpoint.due():
                context.checkpoint.save({"weights": self.weights, "epoch": epoch, "score": best[0], "best": best[1]})
        self.last, self.weights = self.weights, best[1]

    def restore(self, saved):
        return saved["weights"], saved["epoch"], (saved["score"], saved["best"])

    def score(self, histories):
        return self.weights.expand(len(histories), -1).clone()

    def save(self, folder):
        torch.save(self.weights, folder / "weights.pt")

    def load(self, folder, train, context):
        self.weights = torch.load(folder / "weights.pt", weights_only=True)


class LosesEpoch(Epochs):
    """Starts counting anew after each kill, and keeps the last epoch."""

    def fit(self, train, context):
        super().fit(train, context)
        self.weights = self.last

    def restore(self, saved):
        return saved["weights"], 0, (saved["score"], saved["best"])


class LosesRandomState(Epochs):
    def restore(self, saved):
        torch.manual_seed(0)
        return super().restore(saved)


class LosesWeights(Epochs):
    """Only the best weights come back, as the last ones."""

    def restore(self, saved):
        return torch.zeros_like(saved["weights"]), saved["epoch"], (saved["score"], saved["best"])


class LosesEpochBeforeTheCache(LosesEpoch):
    """What it learned is kept for whoever trains the same."""

    def fit(self, train, context):
        def build(folder):
            LosesEpoch.fit(self, train, context)
            self.save(folder)

        self.load(context.artefacts.get("weights", {}, build), train, context)


class PicksOutside(Popularity):
    def choose(self, histories, candidates):
        choice = super().choose(histories, candidates)
        choice.picked[0] = candidates.shape[1]
        return choice


class PicksAtRandom(Popularity):
    def choose(self, histories, candidates):
        choice = super().choose(histories, candidates)
        return type(choice)(np.random.default_rng().integers(0, 20, len(candidates)))


class Raises(Popularity):
    def fit(self, train, context):
        raise ValueError("cannot learn")


@dataclass
class Broken:
    cls: type
    check: str
    message: str


BROKEN = [
    Broken(AcceptsAnything, KEYS, "accepted the key 'no_such_key'"),
    Broken(WalksFrames, HELD_OUT, "differ in held-out items only give different"),
    Broken(CollectsValidation, HELD_OUT, "differ in held-out items only give different"),
    Broken(CollectsTheData, HELD_OUT, "differ in held-out items only give different"),
    Broken(AsksTheJudge, HELD_OUT, "differ in held-out items only give different"),
    Broken(Unseeded, SEED, "two trainings with the same seed give different lists"),
    Broken(Clock, SEED, "two trainings with the same seed give different"),
    Broken(NaN, ANSWERS, "score NaN for item 3"),
    Broken(Repeats, ANSWERS, "twice for user 0 (150 of 150 users)"),
    Broken(Unknown, ANSWERS, "unknown item 80 (items are 0..79)"),
    Broken(TooFew, ANSWERS, "expected (150, 21)"),
    Broken(Short, ANSWERS, "recommend returned items (150, 5)"),
    Broken(IgnoresMask, MASK, "though the protocol masks seen items"),
    Broken(Rising, ANSWERS, "scores that rise along the list"),
    Broken(ForgetsToSave, LOAD, "the saved and the loaded method give different lists"),
    Broken(SavesPickles, LOAD, "save wrote a pickle (model.pkl)"),
    Broken(Mutates, ANSWERS, "read-only"),
    Broken(BatchDependent, ROWS, "when it is asked in another batch"),
    Broken(BatchDependentWithInfinities, ROWS, "when it is asked in another batch"),
    Broken(LosesEpoch, RESUME, "an undisturbed and a resumed training give different"),
    Broken(LosesRandomState, RESUME, "an undisturbed and a resumed training give different"),
    Broken(LosesWeights, RESUME, "an undisturbed and a resumed training give different"),
    Broken(LosesEpochBeforeTheCache, RESUME, "an undisturbed and a resumed training give different"),
    Broken(PicksOutside, CANDIDATES, "a pick outside -1..19"),
    Broken(PicksAtRandom, CANDIDATES, "pick other candidates"),
    Broken(Raises, ANSWERS, "raised ValueError: cannot learn"),
]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.cls.__name__)
def test_broken_methods_are_caught(broken):
    lines: list[str] = []
    assert not check_method(broken.cls, "broken", lines.append)
    caught = [line for line in lines if line.startswith("BROKEN") and broken.check in line]
    assert len(caught) == 1, "\n".join(lines)
    assert broken.message in caught[0]
    assert lines[-1].startswith("broken does NOT pass")


def test_a_method_that_resumes_well_passes():
    """The three that lose something differ from this one only in what they lose."""
    lines: list[str] = []
    assert check_method(Epochs, "epochs", lines.append), "\n".join(lines)


class OnlyPicks(Method):
    """The candidate that most took, and no ranking of the catalogue."""

    def fit(self, train, context):
        self.counts = train.item_counts().astype(np.float32)

    def choose(self, histories, candidates):
        return Choice(self.counts[candidates].argmax(1))

    def save(self, folder):
        np.save(folder / "counts.npy", self.counts)

    def load(self, folder, train, context):
        self.counts = np.load(folder / "counts.npy")


class PicksWhatItDug(OnlyPicks):
    def fit(self, train, context):
        super().fit(train, context)
        for held_out in _collected(HeldOut):
            self.counts += 9 * np.bincount(held_out.targets, minlength=train.num_items)


class PicksByBatch(OnlyPicks):
    def choose(self, histories, candidates):
        return Choice((super().choose(histories, candidates).picked + np.arange(len(candidates))) % 20)


class PicksForgetfully(OnlyPicks):
    def load(self, folder, train, context):
        self.counts = np.zeros(train.num_items)


def test_a_method_that_only_picks_is_asked_to_pick(tmp_path):
    lines: list[str] = []
    assert check_method(OnlyPicks, "picks", lines.append), "\n".join(lines)
    assert len(lines) == 6 + 1 + 1  # without the two of the full protocol, and the verdict
    with pytest.raises(NotImplementedError, match="OnlyPicks picks among candidates and does not rank"):
        OnlyPicks().recommend(Histories(np.array([0]), np.array([0, 0]), np.array([])), 3)


@pytest.mark.parametrize(("cls", "check"), [(PicksWhatItDug, HELD_OUT), (PicksByBatch, ROWS), (PicksForgetfully, LOAD)])
def test_broken_picks_are_caught(cls, check):
    lines: list[str] = []
    assert not check_method(cls, "broken", lines.append)
    assert [check in line for line in lines if line.startswith("BROKEN")] == [True], "\n".join(lines)


def test_global_random_numbers_are_seeded_as_in_a_run():
    import random

    class Python(Popularity):
        def fit(self, train, context):
            self.popularity = np.array([random.random() for _ in range(train.num_items)], np.float32)

    lines: list[str] = []
    assert check_method(Python, "python", lines.append), "\n".join(lines)


def test_poison_changes_held_out_items_only_and_is_undone():
    data = synthetic.generate(num_users=20, num_items=80, seed=7)
    before = data.sequences.items.copy()
    clean = leave_one_out(data)
    with contract.poisoned(data):
        dirty = leave_one_out(data)
    assert rows_of(dirty.train.sequences) == rows_of(clean.train.sequences)
    assert not (dirty.valid.targets == clean.valid.targets).any()
    assert not (dirty.test.targets == clean.test.targets).any()
    assert np.array_equal(data.sequences.items, before)


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    threads = torch.get_num_threads()
    with threadpool_limits(2, user_api="blas"):
        check_method(Raises, "broken", lambda line: None)
        assert blas_threads() == {2}
    assert os.listdir(tmp_path) == []
    assert torch.get_num_threads() == threads


def test_blas_has_one_thread_as_torch_has():
    class Counts(Popularity):
        def fit(self, train, context):
            super().fit(train, context)
            assert (blas_threads(), torch.get_num_threads()) == ({1}, 1)

    lines: list[str] = []
    with threadpool_limits(2, user_api="blas"):
        assert check_method(Counts, "counts", lines.append), "\n".join(lines)


def test_files_and_names(tmp_path):
    path = tmp_path / "two.py"
    path.write_text(
        "from genrec_bench.methods.popularity import Popularity\nfrom genrec_bench.methods.registry import register\n"
        "@register('good')\nclass Good(Popularity): pass\n"
        "@register('bad')\nclass Bad(Popularity):\n    def fit(self, train, context): 1 / 0\n"
    )
    lines: list[str] = []
    assert not check_methods(str(path), lines.append)
    assert any(line.endswith("raised ZeroDivisionError: division by zero (two.py:7)") for line in lines)
    verdicts = [line.partition(":")[0] for line in lines if "the contract suite" in line]
    assert verdicts == ["good passes the contract suite", "bad does NOT pass the contract suite"]
    with pytest.raises(InputError, match="Did you mean: popularity"):
        check_methods("popularty", lines.append)
    with pytest.raises(InputError, match=r"gone\.py: no such file"):
        check_methods(str(tmp_path / "gone.py"), lines.append)
