"""AGRec: a language model over item codes, guided at decoding time by a graph (Wang, Cui, Fukumoto, Suzuki).

    genrec-bench run --method agrec --dataset ml-100k
    genrec-bench run --method agrec --dataset ml-100k --set agrec.lm=tiger --set agrec.graph.encoder=sgl

The parts are trained apart. At decoding time the graph's best items of a user become a rankable finite-state machine
over item codes (`genrec_bench.methods.decoding.fsm`), whose token scores are mixed into the language model's with
weight ``alpha``. ``preset=paper`` mixes probabilities as equations 4 and 5 do, ``official`` mixes logits and raw scores
as the released code does; docs/methods/agrec.md works an example through both.

``graph.encoder=null`` or ``alpha=0`` is the paper's "w/o Graph": the language model's own answer, bit for bit.
``lm=null`` or ``alpha=1`` is "w/o Seq.": the graph's own ranking.

Deviation: any generative recommender and any scoring one can be the parts; each is a method of this suite, trained,
stopped and cached as it is alone. By default the language model learns item codes with all its weights (the paper: LoRA
on LLaMA-1B; ``lm.settings.lora``).
Deviation: alpha is chosen on validation, in steps of 0.1, and the graph that it is chosen with holds training
interactions alone; the released code chooses the graph's epoch on test.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, field_validator, model_validator

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.interactions import Histories, TrainView
from genrec_bench.methods import registry
from genrec_bench.methods.base import Content, Context, Method, MethodConfig, Ranking, Resources, Scale
from genrec_bench.methods.checksums import file_content
from genrec_bench.methods.decoding.beam import Hook
from genrec_bench.methods.decoding.fsm import Aggregation, Logits, Probabilities, RankableFSM
from genrec_bench.methods.generative import Generative
from genrec_bench.methods.scoring import ROWS, Scorer, masked_scores, top_k
from genrec_bench.methods.trained import trained

ALPHAS = tuple(round(0.1 * step, 1) for step in range(10))  # those tried on validation


def _key_of(saved: Path) -> str | None:
    return file_content(saved / "key.json")  # all that decides the weights beside it


class _Part(MethodConfig):
    """A method of the registry that AGRec is made of."""

    settings: dict[str, Any] = Field(default_factory=dict)  # of its config; in a record, all of them
    # a folder of $GENREC_BENCH_HOME/artefacts/trained to read instead of training
    saved: Annotated[Path | None, Content(_key_of)] = None
    version: NonNegativeInt = 0  # the method's own, filled in: part of the run id

    @property
    def name(self) -> str:
        """Of the part's method."""
        raise NotImplementedError

    def contents(self) -> dict[str, str]:
        inner = registry.configure(self.name, self.settings).contents()
        return super().contents() | {f"settings.{key}": content for key, content in inner.items()}


def _completed(values: Any, name: str, kind: type[Any], role: str) -> Any:
    """A part's values with all settings of method ``name``, which must be a ``kind``, and its version."""
    cls = registry.get(name)
    if not issubclass(cls, kind):
        fits = [one for one in registry.BUILT_IN if one != "agrec" and issubclass(registry.get(one), kind)]
        raise ValueError(f"{name} cannot be the {role}: take one of {', '.join(fits)}, or a method of their kind")
    settings = registry.configure(name, values.get("settings", {})).model_dump(mode="json")
    return {**values, "settings": settings, "version": cls.version}


class LanguageModel(_Part):
    """The generative recommender, by name, such as letter_lc_rec, lc_rec, eager_llm, tiger."""

    method: str = "letter_lc_rec"  # of the registry

    @property
    def name(self) -> str:
        return self.method

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        return _completed(values, values.get("method", "letter_lc_rec"), Generative, "language model")


class Graph(_Part):
    """The recommender that suggests items: a graph encoder, or any other that scores the catalogue."""

    encoder: str = "lightgcn"  # of the registry: whatever scores items
    mask_seen: bool = True  # suggest no item of the history, whatever the protocol allows

    @property
    def name(self) -> str:
        return self.encoder

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        return _completed(values, values.get("encoder", "lightgcn"), Scorer, "graph")


class FsmSettings(MethodConfig):
    """How suggestions become token scores; the official preset has its own."""

    aggregation: Aggregation = "max"  # of the items behind a token: the best one's score, or the sum of their shares
    temperature: Literal["std"] | PositiveFloat = "std"  # of the softmax; std: of the user's n scores


class AGRecConfig(MethodConfig):
    """``lm`` and ``graph`` may be given as a name; null leaves the part out."""

    preset: Literal["paper", "official"] = "paper"  # mixes probabilities; official: logits and raw scores
    lm: LanguageModel | None = Field(default_factory=LanguageModel)  # null: the graph alone
    graph: Graph | None = Field(default_factory=Graph)  # null: the language model alone
    n: Annotated[int, Field(ge=1)] = 10  # suggested items
    alpha: Annotated[float, Field(ge=0.0, le=1.0)] | None = None  # weight of the graph; None: chosen on validation
    fsm: FsmSettings = Field(default_factory=FsmSettings)

    # alpha is chosen on validation in every run
    search_space: ClassVar[dict[str, list[Any] | tuple[float, float]]] = {
        "n": [5, 10, 20, 50],
        "lm.settings.learning_rate": (1e-4, 3e-3),
        "lm.settings.dropout": [0.1, 0.2, 0.3],
        "lm.settings.thinning": [0.0, 0.3, 0.5],
    }

    @field_validator("lm", mode="before")
    @classmethod
    def _lm_by_name(cls, value: Any) -> Any:
        return {"method": value} if isinstance(value, str) else value

    @field_validator("graph", mode="before")
    @classmethod
    def _graph_by_name(cls, value: Any) -> Any:
        return {"encoder": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits(self) -> "AGRecConfig":
        if self.lm is None and self.graph is None:
            raise ValueError("lm and graph are both null: nothing is left to recommend with")
        if self.preset == "official" and self.fsm != FsmSettings():
            raise ValueError("fsm is of preset=paper: official takes the best item's raw score")
        if self.preset == "official" and self.lm and self.lm.settings["loss_over"] != "vocabulary":
            raise ValueError(
                "preset=official mixes in a softmax over the whole vocabulary, which the language model must have "
                "learned: set lm.settings.loss_over=vocabulary"
            )
        return self


class AGRec(Method):
    """A language model and a graph, mixed token by token."""

    Config = AGRecConfig
    published_as = "AGRec"
    family = "generative"
    lm: Generative | None
    graph: Scorer | None
    alpha: float

    @classmethod
    def resources(cls, config: Any, scale: Scale) -> Resources:
        part = (config.lm and config.lm.method) or config.graph.encoder
        return registry.get(part).resources(None, scale)

    def fit(self, train: TrainView, context: Context) -> None:
        config = self.config
        if config.graph is not None and config.n > train.num_items:
            raise InputError(f"agrec.n={config.n}: the catalogue has {train.num_items} items to suggest")
        self._read_parts(train, context)
        if self.lm is None or self.graph is None:
            self.alpha = 0.0 if self.graph is None else 1.0
        else:
            self.alpha = self._tuned(context) if config.alpha is None else config.alpha
            silent = train.num_users - int((train.sequences.lengths > 0).sum())
            unknown = int((~self.known).sum())
            context.log(stage="mixture", alpha=self.alpha, users_without_graph=silent, items_without_graph=unknown)

    def recommend(self, histories: Histories, k: int) -> Ranking:
        return self.rankings(histories, k, [self.alpha])[0]

    def rankings(self, histories: Histories, k: int, alphas: Sequence[float]) -> list[Ranking]:
        """The answer for each of ``alphas``; the graph is asked, and the prompts are read, once for all of them."""
        if self.lm is None:
            return [self._graph_alone(histories, k)] * len(alphas)
        found: dict[float, Ranking] = {}
        if 0.0 in alphas or self.graph is None:
            found[0.0] = self.lm.recommend(histories, k)
        if self.graph is None:
            return [found[0.0]] * len(alphas)
        if 1.0 in alphas:  # nothing is left of the language model
            found[1.0] = self._graph_alone(histories, k)
        mixed = [alpha for alpha in dict.fromkeys(alphas) if alpha not in found]
        if mixed:
            found |= zip(mixed, self._mixed(histories, k, mixed), strict=True)
        return [found[alpha] for alpha in alphas]

    def suggestions(self, histories: Histories) -> tuple[np.ndarray, np.ndarray]:
        """The graph's best ``n`` items of each history, best first, -1 past their end, and their scores: both (B, n).

        None for a user of whom the graph knows nothing, and no item that it knows nothing of.
        """
        items, scores, told = self._best(histories, self.config.n)
        real = (items >= 0) & told[:, None]
        return np.where(real, items, -1), np.where(real, scores, 0.0).astype(np.float32)

    def _graph_alone(self, histories: Histories, k: int) -> Ranking:
        """Its ranking of what it may suggest: "w/o Seq."."""
        return Ranking(*self._best(histories, k)[:2])

    def _best(self, histories: Histories, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The graph's best items that it may suggest and their scores, both (B, count), -1 and -inf past their end.

        Third, (B,) bool, whether it knows anything of a user: it does not where there is no history, or where all
        items score alike.
        """
        assert self.graph is not None
        items = np.full((len(histories), count), -1, dtype=np.int64)
        scores = np.full((len(histories), count), -np.inf, dtype=np.float32)
        told = histories.lengths > 0
        asked = replace(histories, mask_seen=self.config.graph.mask_seen or histories.mask_seen)
        known = torch.from_numpy(self.known)
        for start in range(0, len(asked), ROWS):
            rows = slice(start, start + ROWS)
            given = masked_scores(self.graph, asked.select(rows))
            given = given.masked_fill(~known.to(given.device), -torch.inf)
            lowest = given.masked_fill(given == -torch.inf, torch.inf).amin(1)
            values, best = top_k(given, count)
            told[rows] &= (values[:, 0] > lowest).cpu().numpy()
            items[rows, : best.shape[1]] = torch.where(values > -torch.inf, best, -1).cpu().numpy()
            scores[rows, : best.shape[1]] = values.cpu().numpy()
        return items, scores, told

    def code(self, item: int) -> list[str] | None:
        return None if self.lm is None else self.lm.code(item)

    def parts(self) -> dict[str, Method]:
        named = {"language model": self.lm, "graph": self.graph}
        return {name: part for name, part in named.items() if part is not None}

    def item_vectors(self) -> dict[str, np.ndarray]:
        return {
            name if kind == "items" else f"{name} {kind}": vectors
            for name, part in self.parts().items()
            for kind, vectors in part.item_vectors().items()
        }

    def write_titles(self, items: np.ndarray) -> list[str]:
        if self.lm is None:
            return super().write_titles(items)
        return self.lm.write_titles(items)

    def published_variant(self) -> str | None:
        """The ablations of tables 3 and 7, and the encoders of tables 5 and 7."""
        config = self.config
        if self.lm is None or self.graph is None:
            return "w/o Graph" if self.graph is None else "w/o Seq"
        if config.preset == "official" or config.n != 10:
            return "not printed"
        encoders = {"lightgcn": None, "sgl": "graph=SGL", "xsimgcl": "graph=XSimGCL"}
        return encoders.get(config.graph.encoder, "not printed")

    def parameters(self) -> tuple[int, int]:
        parts = [part.parameters() for part in (self.lm, self.graph) if part is not None]
        return sum(everything for everything, _ in parts), sum(changed for _, changed in parts)

    def save(self, folder: Path) -> None:
        for name, part in (("lm", self.lm), ("graph", self.graph)):
            if part is not None:
                (folder / name).mkdir()
                part.save(folder / name)
        np.save(folder / "alpha.npy", np.array(self.alpha))

    def load(self, folder: Path, train: TrainView, context: Context) -> None:
        self._new_parts()
        for name, part in (("lm", self.lm), ("graph", self.graph)):
            if part is not None:
                part.load(folder / name, train, context)
        self._know(train)
        self.alpha = float(np.load(folder / "alpha.npy"))

    def _new_parts(self) -> None:
        lm, graph = self.config.lm, self.config.graph
        made = [
            None if lm is None else (lm.method, lm.settings),
            None if graph is None else (graph.encoder, graph.settings),
        ]
        parts: list[Any] = [None if one is None else registry.get(one[0])(registry.configure(*one)) for one in made]
        self.lm, self.graph = parts

    def _read_parts(self, train: TrainView, context: Context) -> None:
        def read(part: Any, name: str, leads: bool) -> Any:
            return trained(name, registry.configure(name, part.settings), train, context, part.saved, leads)

        lm, graph = self.config.lm, self.config.graph
        self.lm = read(lm, lm.method, leads=True) if lm else None
        self.graph = read(graph, graph.encoder, leads=lm is None) if graph else None
        self._know(train)

    def _know(self, train: TrainView) -> None:
        """What the mixing needs to know of the training data and the codes."""
        self.known = train.item_counts() > 0
        if self.config.preset != "official" or self.lm is None:
            return
        index, name = self.lm.index, self.config.lm.method
        if index.variable or len(index.vocabulary) < sum(index.level_sizes):
            raise InputError(
                "agrec.preset=official wants codes of one length, with tokens of their own on each level, which "
                f"{name} does not have here: take preset=paper"
            )

    def _mixed(self, histories: Histories, k: int, alphas: Sequence[float]) -> list[Ranking]:
        assert self.lm is not None
        machine = RankableFSM(self.lm.trie, *self.suggestions(histories))
        if self.config.preset == "official":
            hooks: list[Hook] = [Logits(machine, alpha, self.lm.items.by_level) for alpha in alphas]
            return self.lm.search(histories, k, hooks, normalise="level")
        fsm = self.config.fsm
        temperature = None if fsm.temperature == "std" else fsm.temperature
        hooks = [Probabilities(machine, alpha, fsm.aggregation, temperature) for alpha in alphas]
        return self.lm.search(histories, k, hooks, normalise="trie")

    def _tuned(self, context: Context) -> float:
        """The alpha of `ALPHAS` that validation likes best, the smallest of the best; one pass decodes them all."""
        curve = _Curve(self)
        scores = []
        for place in range(len(ALPHAS)):
            curve.place = place
            scores.append(context.validate(curve))
        context.log(stage="alpha", **{f"{alpha:.1f}": score for alpha, score in zip(ALPHAS, scores, strict=True)})
        return ALPHAS[int(np.argmax(scores))]


class _Curve(Method):
    """AGRec at one of `ALPHAS` after the other: the answers to the first asking serve all of them."""

    def __init__(self, method: AGRec):
        super().__init__(method.config)
        self._method, self.place = method, 0
        self._asked: Histories | None = None
        self._answers: list[Ranking] = []

    def recommend(self, histories: Histories, k: int) -> Ranking:
        if self._asked is None or not _same(self._asked, histories):
            self._asked, self._answers = histories, self._method.rankings(histories, k, ALPHAS)
        return self._answers[self.place]

    def fit(self, train: TrainView, context: Context) -> None:
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    def load(self, folder: Path, train: TrainView, context: Context) -> None:
        raise NotImplementedError


def _same(one: Histories, other: Histories) -> bool:
    return (
        one.mask_seen == other.mask_seen
        and np.array_equal(one.users, other.users)
        and np.array_equal(one.offsets, other.offsets)
        and np.array_equal(one.items, other.items)
    )
