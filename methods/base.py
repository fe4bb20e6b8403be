"""The method contract: what a recommender gets, what it must give, and nothing else.

A method is a frozen config class and a class with ``fit`` and ``recommend``, or ``choose`` for the candidate
protocol, or both. It never computes a metric and never sees a held-out item; `genrec_bench.benchmark` measures.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from genrec_bench.datasets.interactions import Histories, TrainView
from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.checkpoint import Checkpoint
from genrec_bench.methods.checksums import file_content
from genrec_bench.methods.language.sources import folder_content

Scale = Literal["tiny", "base", "paper"]


Rate = Annotated[float, Field(ge=0.0, lt=1.0)]  # a share, such as a dropout probability


@dataclass(frozen=True)
class Content:
    """Marks a config's field that may name a file or folder; ``of`` hashes what is in it, None where it names none."""

    of: Callable[[Any], str | None]


FileName = Annotated[str | None, Content(file_content)]
ModelName = Annotated[str | None, Content(folder_content)]  # a folder, or a tier, a hub id


class MethodConfig(BaseModel):
    """Base of every method's config: frozen, unknown keys rejected.

    ``search_space`` maps a field to the values a search may try: a list of choices, or a ``(low, high)`` pair of floats
    that is sampled on a log scale; dots lead into a group (``lm.settings.dropout``). ``batch_field`` names the field
    that says how much is computed at a time, where there is one. ``incidental`` names fields that change how an answer
    is come by, never the answer (an address, a price, a number of tries): two runs that differ in them alone are one.
    ``added`` gives fields that came after the first records the value that those were made with: at that value they
    stand in no id, so that the records count on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    search_space: ClassVar[dict[str, list[Any] | tuple[float, float]]] = {}
    incidental: ClassVar[frozenset[str]] = frozenset()
    added: ClassVar[dict[str, Any]] = {}
    batch_field: ClassVar[str | None] = None

    def less_memory(self) -> "MethodConfig | None":
        """The same with half as much computed at a time, for a second try after the memory was not enough.

        None where that cannot be. Unless the config says otherwise it is another run, with its own id.
        """
        if self.batch_field is None:
            return None
        size = getattr(self, self.batch_field)
        return self.model_copy(update={self.batch_field: size // 2}) if size > 1 else None

    def identity(self) -> dict[str, Any]:
        """The plain values that determine a result."""
        values = self.model_dump(mode="json", exclude=set(self.incidental))
        return {name: value for name, value in values.items() if name not in self.added or value != self.added[name]}

    def contents(self) -> dict[str, str]:
        """Field -> hash of what is in the file or folder that it names; dots lead into groups.

        It determines a result as `identity` does, and is apart from it because only a machine that holds the files can
        tell. What is not there is left out, and `fit` says so. An index file is not in here: see ``index.sha256``.
        """
        return contents_of(self)


def contents_of(config: BaseModel) -> dict[str, str]:
    """`MethodConfig.contents` of all fields that are marked, in groups too."""
    found: dict[str, str] = {}
    for name, field_info in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            inner = value.contents() if isinstance(value, MethodConfig) else contents_of(value)
            found |= {f"{name}.{key}": content for key, content in inner.items()}
        for mark in field_info.metadata:
            if isinstance(mark, Content) and value is not None and (content := mark.of(value)) is not None:
                found[name] = content
    return found


@dataclass(frozen=True)
class Ranking:
    """The answer to ``recommend``: best first, one row a history.

    ``items`` (B, k) int64, -1 where a row has fewer than k answers (only at the row's end); ``scores`` (B, k) float32.
    ``ordered`` says that equal scores are already in an order that does not depend on the target (a beam's code order);
    otherwise the harness counts ties against the target.
    """

    items: np.ndarray
    scores: np.ndarray
    ordered: bool = False


@dataclass(frozen=True)
class Choice:
    """The answer to ``choose``: the picked column of each row's candidates, (B,) int64, -1 for an invalid answer.

    ``scores`` (B, C) float32 where the method scores candidates; the harness then ranks, ties against the target.
    """

    picked: np.ndarray
    scores: np.ndarray | None = None


@dataclass(frozen=True)
class Resources:
    """What one run asks of a cluster; no part of its identity.

    ``cpus``, ``gpus`` (a fraction shares a GPU; none are asked for where a cluster has none) and ``memory_mib`` of host
    memory (0: unsaid) are of each of its ``processes``, which train data-parallel where there are several.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory_mib: float = 0.0
    processes: int = 1


class Validate(Protocol):
    """What ``context.validate`` is."""

    def __call__(self, method: "Method", users: int = 0) -> float:
        """Selection metric of ``method`` on validation targets: all of them, or those of a fixed sample of users."""


@dataclass
class Context:
    """What a method may use while it learns."""

    seed: int
    device: str  # "cpu" or "cuda"
    scale: Scale
    checkpoint: Checkpoint  # training state that survives a kill
    artefacts: ArtefactCache  # content-addressed stages shared by all methods
    validate: "Validate"  # the protocol's selection metric on validation targets, higher is better
    log: Callable[..., None] = field(default=lambda **values: None)  # log(epoch=3, loss=1.2): one training event
    selection: str = ""  # hash of the data and the protocol behind `validate`: for the key of what was chosen by it


class Method(ABC):
    """One recommender. Subclasses set ``Config`` and register themselves (`genrec_bench.methods.registry`).

    ``version`` is part of the run id: raise it when the same config gives another result.
    ``published_as`` is the method's name in the printed tables, where it has one.
    ``parallel``: torchrun's processes all call ``fit``, which shares its work among them and leaves the same method in
    each (`genrec_bench.methods.distributed`); any other method is rank 0's alone.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    version: ClassVar[int] = 1
    published_as: ClassVar[str | None] = None
    family: ClassVar[str] = "other"
    parallel: ClassVar[bool] = False

    def __init__(self, config: MethodConfig | None = None):
        self.config: Any = config if config is not None else self.Config()

    @abstractmethod
    def fit(self, train: TrainView, context: Context) -> None:
        """Learn from ``train``. Select epochs and the like through ``context.validate(self)`` only."""

    def recommend(self, histories: Histories, k: int) -> Ranking:
        """The k best items for each history; items of the history are left out where ``histories.mask_seen``.

        A history that a person types belongs to a user whom nobody has seen: number ``num_users`` of the training view.
        Only a method that has `choose` may do without: it takes part in the candidate protocol alone.
        """
        raise NotImplementedError(f"{type(self).__name__} picks among candidates and does not rank the catalogue")

    def choose(self, histories: Histories, candidates: np.ndarray) -> Choice:
        """Pick one of ``candidates`` (B, C) int64 for each history. Optional: the candidate protocol asks for it."""
        raise NotImplementedError(f"{type(self).__name__} does not take part in the candidate protocol")

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what `load` needs; no pickles."""

    @abstractmethod
    def load(self, folder: Path, train: TrainView, context: Context) -> None:
        """Restore a saved method: afterwards `recommend` answers as it did before."""

    def code(self, item: int) -> list[str] | None:
        """The tokens that name item number ``item``, where the method writes items as codes. Optional: for display."""
        return None

    def variants(self) -> dict[str, "Method"]:
        """Other states of what was trained that are worth measuring beside it, by name (adapter on, adapter off)."""
        return {}

    def parts(self) -> dict[str, "Method"]:
        """The methods that this one is made of, by what they are in it. Optional: for analyses."""
        return {}

    def item_vectors(self) -> dict[str, np.ndarray]:
        """Learned vectors of all items, (N, d) each, by what they are. Optional: for pictures."""
        return {}

    def write_titles(self, items: np.ndarray) -> list[str]:
        """The title that the method writes for each item number of ``items``, from its code alone. Optional."""
        raise NotImplementedError(f"{type(self).__name__} writes no text")

    def published_variant(self) -> str | None:
        """The row of the printed tables that this config stands beside, where papers print several; None: the main one.

        A config that no paper has run gives a name that no row has.
        """
        return None

    def parameters(self) -> tuple[int, int]:
        """Learned numbers in all, and those of them that training changed."""
        return 0, 0

    @classmethod
    def resources(cls, config: Any, scale: Scale) -> Resources:
        """What a run under ``config`` asks of a cluster (`genrec-bench run --engine ray`)."""
        return Resources()

    @classmethod
    def full_protocol(cls) -> bool:
        """Whether this method can rank the whole catalogue; one that has neither answer is told so when it is asked."""
        return cls.recommend is not Method.recommend or not cls.candidate_protocol()

    @classmethod
    def candidate_protocol(cls) -> bool:
        """Whether this method can take part in the candidate protocol."""
        return cls.choose is not Method.choose
