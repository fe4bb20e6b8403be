"""Behaviour vectors of items: what users did with them, learned from training interactions alone.

The item table of a recommender: sequential (LETTER uses SASRec, 32 wide), DIN (EAGER-LLM's, 64 wide) or on the graph
(LightGCN, SGL, XSimGCL); or a truncated SVD in seconds; or any other next-item recommender of the registry, with its
own settings (MoRec, a plugin's).

An index is made before a method is trained, so nothing held out may shape it, the validation items included: the
recommender's number of epochs is chosen on the last TRAINING item of each user; then it learns anew from all training
interactions for that many epochs, since an item may occur as somebody's last one only.

Epochs are chosen by the likelihood of that item. DIN's logits estimate log p(item | history) up to a constant (its
negatives are uniform), so the softmax over items is a likelihood for it too, and no second criterion is needed.
Graph encoders are chosen by how often the item is among the ten best of those that the user has not touched:
LightGCN's scores of touched items rise without bound, and even among the others likelihood turns after 25 epochs on
MovieLens-100K, where the ranking improves until about 50.

An item that nobody touched in training keeps a random vector, moved only as a negative (zero with the SVD):
see `with_cold_items`.
"""

import hashlib
import inspect
import json
import shutil
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from genrec_bench.datasets.errors import InputError, unknown
from genrec_bench.datasets.interactions import Histories, TrainView
from genrec_bench.methods import registry
from genrec_bench.methods.artefacts import canonical_hash
from genrec_bench.methods.base import Context, Method, MethodConfig
from genrec_bench.methods.checkpoint import Checkpoint
from genrec_bench.methods.encoders.lightgcn import LightGCN
from genrec_bench.methods.encoders.sgl import SGL
from genrec_bench.methods.encoders.xsimgcl import XSimGCL
from genrec_bench.methods.next_item import NextItemConfig, TrainedScorer
from genrec_bench.methods.scoring import Scorer
from genrec_bench.methods.seeding import seeded

VERSION = 1  # of this stage: raise it when the same interactions and config give other vectors
# Narrow models need less dropout and learn faster than the 64-wide ones that are ranked with. MovieLens-100K: likeliest
# after 37 epochs, where the ranked model's values need over 60; Amazon Beauty: after 10 (153 s, 248 s on a busy core).
QUICK: dict[str, Any] = {"epochs": 60, "patience": 3, "learning_rate": 3e-3, "dropout": 0.2}
# Amazon Beauty: best after 4 epochs (219 s, most of it spent on likelihood, hence the sample of users).
DIN_QUICK: dict[str, Any] = {"epochs": 30, "patience": 3, "validation_users": 500}
# Ten times the paper's learning rate. MovieLens-100K: best after some tens of epochs; Amazon Beauty: after 7 (199 s).
GRAPH_QUICK: dict[str, Any] = {"epochs": 100, "patience": 10, "learning_rate": 1e-2}
ROWS = 256  # histories or items compared with the catalogue at a time


def behaviour_vectors(
    train: TrainView,
    context: Context,
    kind: str = "sasrec",
    dim: int = 32,
    seed: int = 0,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> np.ndarray:
    """A vector for each item from training interactions, (N, dim) float32; row i is item number i.

    ``seed`` is not the context's: one index serves all seeds of a method. ``settings`` go into the recommender's config
    (``epochs``, ``dropout``, ...). ``context.validate`` is never called. A killed run goes on where it stood. Raises
    InputError for an unknown kind or setting.
    """
    make, more = (ENCODERS[kind], {}) if kind in ENCODERS else _of_the_registry(kind, train)
    if dim < 1:
        raise InputError(f"Behaviour vectors: dim={dim}, but a vector needs at least one number")
    encoder = make(dim, settings)
    key = {"version": VERSION, "kind": kind, "dim": dim, "seed": seed, "settings": encoder.settings, **more}
    key |= {"num_items": train.num_items, "sequences": _sha256(train.sequences)}

    def write(folder: Path) -> None:
        # beside the unfinished artefact, under its key: the next attempt finds it
        training = context.artefacts.root / "behaviour_training" / canonical_hash(key)[:24]
        vectors = encoder.build(train, replace(context, seed=seed), training)
        np.save(folder / "vectors.npy", vectors.astype(np.float32))
        shutil.rmtree(training, ignore_errors=True)

    folder = context.artefacts.get("behaviour_vectors", key, write)
    vectors: np.ndarray = np.load(folder / "vectors.npy")
    return vectors


def _sha256(sequences: Histories) -> str:
    digest = hashlib.sha256(sequences.offsets.astype("<i8").tobytes())
    digest.update(sequences.items.astype("<i4").tobytes())
    return digest.hexdigest()


# How well a fitted method foresaw which item follows each history; higher is better.
Judge = Callable[[Method, Histories, np.ndarray], float]


@dataclass(frozen=True)
class Encoder:
    """A way to make vectors: ``build(train, context, folder)`` may keep training state in ``folder``.

    ``settings`` is all that determines the vectors beside the interactions and the seed.
    """

    settings: dict[str, Any]
    build: Callable[[TrainView, Context, Path], np.ndarray]


def _sequential(name: str, defaults: Mapping[str, Any], dim: int, settings: Mapping[str, Any]) -> Encoder:
    """The item table of a next-item recommender of the registry."""
    config = registry.configure(name, {"dim": dim, **defaults, **settings})
    return _learned(registry.get(name), config, likelihood)


class _LightGCN(LightGCN):
    """Propagates as the indices of old records did: the faster product sums in another order, moving last bits."""

    backend = "sparse"


def _of_the_registry(name: str, train: TrainView) -> tuple["EncoderMaker", dict[str, str]]:
    """A next-item recommender that is none of ours, or reads texts, and what else determines its vectors."""
    method = registry.get(name) if name in registry.names() else None
    if method is None or not (issubclass(method, TrainedScorer) and issubclass(method.Config, NextItemConfig)):
        raise unknown("behaviour encoder", name, ENCODERS)
    code = Path(inspect.getfile(method)).read_bytes()
    more = {"code": hashlib.sha256(code).hexdigest(), "items": canonical_hash(train.items.to_dict("list"))}
    return partial(_sequential, name, {}), more


def _graph(name: str, method: type[Method], dim: int, settings: Mapping[str, Any]) -> Encoder:
    """The item table of a graph encoder. Users are asked as they were learned, by their number."""
    if "test_edges" in settings:
        raise InputError(f"Behaviour vectors by {name} are learned with test_edges=train: it cannot be set")
    config = registry.checked(name, method.Config, {"dim": dim, **GRAPH_QUICK, "test_edges": "train", **settings})
    return _learned(method, config, hit_share, {"test_edges"})


def _learned(method: type[Method], config: MethodConfig, judge: Judge, fixed: Set[str] = frozenset()) -> Encoder:
    """``fixed`` are settings that have one value here, so that the key need not tell it."""

    def build(train: TrainView, context: Context, folder: Path) -> np.ndarray:
        return _item_table(method, config, judge, train, context, folder)

    settings = config.model_dump(mode="json", exclude=set(fixed))
    if contents := config.contents():
        settings["contents"] = contents
    return Encoder({**settings, "method_version": method.version}, build)


def _svd(dim: int, settings: Mapping[str, Any]) -> Encoder:
    if settings:
        raise InputError(f"Behaviour vectors by svd have no settings, got: {', '.join(settings)}")
    return Encoder({}, lambda train, context, folder: cooccurrence_svd(train, dim))


EncoderMaker = Callable[[int, Mapping[str, Any]], Encoder]
# What a later encoder adds itself to.
ENCODERS: dict[str, EncoderMaker] = {
    "caser": partial(_sequential, "caser", QUICK),
    "din": partial(_sequential, "din", DIN_QUICK),
    "gru4rec": partial(_sequential, "gru4rec", QUICK),
    "lightgcn": partial(_graph, "lightgcn", _LightGCN),
    "sasrec": partial(_sequential, "sasrec", {**QUICK, "hidden_dropout": 0.2}),
    "sgl": partial(_graph, "sgl", SGL),
    "svd": _svd,
    "xsimgcl": partial(_graph, "xsimgcl", XSimGCL),
}


def cooccurrence_svd(train: TrainView, dim: int) -> np.ndarray:
    """(N, dim) float64 whose inner products approximate the cosine between two items' sets of users.

    Truncated SVD of the user-item matrix with columns of unit length; an item without training interactions is zero,
    and so are the dimensions beyond the matrix's rank.
    """
    from scipy.sparse import csr_array
    from sklearn.decomposition import TruncatedSVD

    user = np.repeat(np.arange(len(train.sequences)), train.sequences.lengths)
    user, item = np.unique(np.stack([user, train.sequences.items]), axis=1)  # repeated interactions count once
    users = np.bincount(item, minlength=train.num_items)
    shape = (len(train.sequences), train.num_items)
    touched = csr_array((1.0 / np.sqrt(users[item]), (user, item)), shape=shape)
    svd = TruncatedSVD(min(dim, *shape), n_iter=7, random_state=0).fit(touched)
    vectors = np.zeros((train.num_items, dim))
    vectors[:, : len(svd.singular_values_)] = svd.components_.T * svd.singular_values_
    return vectors


def with_cold_items(
    vectors: np.ndarray, trained: np.ndarray, text_vectors: np.ndarray | None, neighbours: int = 10
) -> np.ndarray:
    """``vectors`` (N, dim), those of items outside ``trained`` (N,) bool replaced by what similar texts suggest.

    Such an item gets the mean vector of the ``neighbours`` trained items whose ``text_vectors`` (N, h) have the largest
    cosine with its own, equal ones by item number; of all trained items where there are fewer, or no texts.
    EAGER-LLM's index.
    """
    if not trained.any():
        raise InputError("Behaviour vectors: no item has training interactions, so there is nothing to borrow from")
    known, cold = np.flatnonzero(trained), np.flatnonzero(~trained)
    filled = vectors.copy()
    if text_vectors is None:
        filled[cold] = vectors[known].mean(0)
        return filled
    unit = text_vectors / np.maximum(np.linalg.norm(text_vectors, axis=1, keepdims=True), 1e-12)
    for start in range(0, len(cold), ROWS):
        rows = cold[start : start + ROWS]
        nearest = np.argsort(-(unit[rows] @ unit[known].T), axis=1, kind="stable")[:, :neighbours]
        filled[rows] = vectors[known[nearest]].mean(1)
    return filled


def _item_table(
    method: type[Method], config: MethodConfig, judge: Judge, train: TrainView, context: Context, folder: Path
) -> np.ndarray:
    # a cached stage draws no random numbers, so neither may one that is built
    with seeded(context.seed):
        epochs = _chosen_epochs(method, config, judge, train, context, folder)
        fitted = method(config.model_copy(update={"epochs": epochs, "patience": epochs}))
        journal = _Journal(folder / "all.json", context)
        torch.manual_seed(context.seed)
        # each epoch counts as better than the last: the last one's weights are kept
        fitted.fit(train, journal.context(folder / "all", lambda fitted, users: journal.best_score + 1.0))
    table: np.ndarray = fitted.model.item_table().detach().float().cpu().numpy()  # type: ignore[attr-defined]
    return table


def _chosen_epochs(
    method: type[Method], config: MethodConfig, judge: Judge, train: TrainView, context: Context, folder: Path
) -> int:
    """The epoch that ``judge`` likes best, asked for each user's last training item."""
    asked = train.sequences.select(train.sequences.lengths > 1)
    if not len(asked):
        return 1
    inner = replace(train, sequences=train.sequences.without_last(1), timestamps=None)

    def judged(fitted: Method, users: int) -> float:
        sample = _sampled(asked, users) if users else asked
        return judge(fitted, sample.without_last(1), sample.items[sample.offsets[1:] - 1])

    journal = _Journal(folder / "part.json", context)
    if not journal.finished:
        torch.manual_seed(context.seed)
        fitted = method(config)
        fitted.fit(inner, journal.context(folder / "part", judged))
        journal.finish()
    return journal.best_epoch


def _sampled(histories: Histories, users: int) -> Histories:
    """``users`` rows, the same ones each time; all where there are no more."""
    return histories.select(np.sort(np.random.default_rng(0).permutation(len(histories))[:users]))


def hit_share(method: Method, histories: Histories, targets: np.ndarray) -> float:
    """Share of histories whose next item is among the ten best that they do not hold; a repeated one is a miss."""
    best = method.recommend(replace(histories, mask_seen=True), 10).items  # (B, 10)
    return float((best == targets[:, None]).any(1).mean())


@torch.inference_mode()
def likelihood(method: Method, histories: Histories, targets: np.ndarray) -> float:
    """Geometric mean of the probability that a scoring method gives to the item that follows each history."""
    assert isinstance(method, Scorer)
    total = 0.0
    order = np.argsort(histories.lengths, kind="stable")
    for start in range(0, len(order), ROWS):
        rows = order[start : start + ROWS]
        scores = torch.as_tensor(method.score(histories.select(rows))).float()
        wanted = torch.from_numpy(targets[rows].astype(np.int64)).to(scores.device)
        total += float(scores.log_softmax(1).gather(1, wanted[:, None]).double().sum())
    return float(np.exp(total / len(order)))


class _Journal:
    """Scores of the epochs so far, on disk: the checkpoint is the method's own and does not tell them."""

    def __init__(self, path: Path, context: Context):
        self._path, self._context = path, context
        self.scores: dict[str, float] = {}
        self.finished = False
        if path.is_file():
            try:
                saved = json.loads(path.read_text())
                self.scores, self.finished = dict(saved["scores"]), bool(saved["finished"])
            except (ValueError, KeyError, TypeError):
                pass  # cut short by a kill: the epochs are trained again, with the same scores

    @property
    def best_score(self) -> float:
        return max(self.scores.values(), default=0.0)

    @property
    def best_epoch(self) -> int:
        """The first of the best; 1 where nothing was trained."""
        return min((-score, int(epoch)) for epoch, score in self.scores.items())[1] if self.scores else 1

    def context(self, folder: Path, score: Callable[[Method, int], float]) -> Context:
        """A context to train in, validated by ``score``, which is noted here; its checkpoint is in ``folder``."""

        def log(**values: Any) -> None:
            if "epoch" not in values:  # facts of the graph
                return
            self.scores[str(values["epoch"])] = values["validation"]
            self._write()
            self._context.log(stage=f"behaviour_vectors:{self._path.stem}", **values)

        def validate(method: Method, users: int = 0) -> float:
            return score(method, users)

        return replace(self._context, checkpoint=Checkpoint(folder), validate=validate, log=log)

    def finish(self) -> None:
        self.finished = True
        self._write()

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps({"scores": self.scores, "finished": self.finished}))
        fresh.replace(self._path)
