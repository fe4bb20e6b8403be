"""What the graph encoders share: edges, layer-0 vectors, BPR with one negative a pair, and who a history's user is.

Each training pair is one edge of the user-item graph, however often it occurs. Trained pairwise (BPR, Rendle et al.,
UAI 2009) with one uniform negative outside the user's training items, and L2 on the layer-0 vectors of the batch.

Which edges count when a history is asked about (``test_edges``):

- ``train``: those that were learned from. A user is the vector learned under the user's number, whatever the history.
- ``train+valid``: the history's own. The user's layers are computed from the distinct items of the history, those later
  than training too: e_u^(l+1) = sum over i of e_i^(l) / sqrt(|history| max(degree_i, 1)), the items' layers and degrees
  being those of the training graph; layer 0 is the one learned under the user's number. Where the history is what the
  user was trained on, this is the training graph's own vector.

In both, a user without training interactions has learned nothing and has a layer 0 of zeros: a person who types a
history is that history's items with ``train+valid``, and zeros with ``train``.

Deviation: AGRec's code adds all users' validation items to the graph that it learns from and asks; here a history's
later items are edges of its own user alone, and of no other's, so an answer never depends on who else is asked.

Memory and time: a step propagates over the whole graph, whatever the batch. Large graphs want large batches: 10 M
interactions with ``batch_size`` 262144 are 39 steps an epoch and not 4,883. `benchmarks/graph.py --part large`.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from genrec_bench.datasets.interactions import Histories, TrainView
from genrec_bench.methods import losses
from genrec_bench.methods.base import Context
from genrec_bench.methods.encoders import propagation
from genrec_bench.methods.encoders.propagation import normalised_adjacency, propagate, step
from genrec_bench.methods.next_item import TrainedScorer, TrainingConfig, train_epochs


class GraphConfig(TrainingConfig):
    """What all graph encoders go by."""

    dim: PositiveInt = 64
    layers: PositiveInt = 2
    learning_rate: PositiveFloat = 1e-2  # AGRec's 1e-3 takes hundreds of epochs on small data
    regularisation: NonNegativeFloat = 1e-4  # of half the squared layer-0 vectors, a triple
    batch_size: PositiveInt = 2048  # triples a step; see the module on large graphs
    test_edges: Literal["train", "train+valid"] = "train+valid"  # of a history that is asked about, see the module

    batch_field: ClassVar[str | None] = "batch_size"
    search_space: ClassVar[dict[str, list[Any] | tuple[float, float]]] = {
        "dim": [64, 128, 256],
        "layers": [1, 2, 3],
        "learning_rate": (1e-3, 2e-2),
        "regularisation": [0.0, 1e-5, 1e-4, 1e-3],
    }


class GraphEncoder(TrainedScorer):
    """A recommender whose score is the inner product of a user's and an item's vector on the graph."""

    Config = GraphConfig
    family = "graph"
    first_layer: ClassVar[int] = 0  # a node's vector is the mean of this layer and those after it
    backend: ClassVar[str | None] = None  # of propagation, where it must not follow the device

    def fit(self, train: TrainView, context: Context) -> None:
        self._build(train, context)
        context.log(stage="graph", **self.model.facts())
        train_epochs(self.model, self, self.config, context, self._step_losses)

    @abstractmethod
    def _step_losses(self, rng: np.random.Generator) -> Iterator[Tensor]:
        """The loss of each step of an epoch, over ``self.model.triples``."""

    def score(self, histories: Histories) -> Tensor:
        return self.user_vectors(histories) @ self.model.item_table().T

    @torch.inference_mode()
    def user_vectors(self, histories: Histories) -> Tensor:
        """The vector of each history's user, (B, dim)."""
        if self.config.test_edges == "train":
            return self.model.known_rows(self.model.vectors()[0], histories.users)
        return self.model.folded_in(histories)

    def _build(self, train: TrainView, context: Context) -> None:
        backend = self.backend or propagation.backend_for(context.device)
        self.model = GraphModel(train, self.config, self.first_layer, backend, context.device).to(context.device)


class GraphModel(nn.Module):
    """Layer-0 vectors of users, then items, Xavier uniform; the graph is no part of the saved weights."""

    def __init__(
        self,
        train: TrainView,
        config: GraphConfig,
        first_layer: int = 0,
        backend: str = "bag",
        device: str = "cpu",
    ):
        super().__init__()
        self.num_users, self.num_items, self.config = train.num_users, train.num_items, config
        self.first_layer, self.backend, self.device = first_layer, backend, device
        self.layer0 = nn.Parameter(torch.empty(self.num_users + self.num_items, config.dim))
        nn.init.xavier_uniform_(self.layer0)
        self.edges = edges(train)  # (2, E)
        self.user_degrees = np.bincount(self.edges[0], minlength=self.num_users)
        self.item_degrees = np.bincount(self.edges[1], minlength=self.num_items)
        self.product = self.product_over(self.edges)
        self._vectors: tuple[Tensor, Tensor] | None = None
        self._shares: Tensor | None = None

    def product_over(self, some_edges: np.ndarray) -> propagation.Product:
        """A step over the graph of these edges (2, E), by user, then item."""
        adjacency = normalised_adjacency(some_edges, self.num_users, self.num_items)
        return propagation.BACKENDS[self.backend](adjacency, self.device)

    def facts(self) -> dict[str, int | str]:
        """What a record says of the graph, and what propagates."""
        return {
            "propagation": self.backend,
            "edges": self.edges.shape[1],
            "users_without_items": int((self.user_degrees == 0).sum()),
            "items_without_users": int((self.item_degrees == 0).sum()),
        }

    def train(self, mode: bool = True) -> "GraphModel":
        """As any module's; called whenever weights have changed or will, so what was computed from them goes."""
        self._vectors = self._shares = None
        super().train(mode)
        return self

    def forward(self) -> tuple[Tensor, Tensor]:
        """Vectors of users (U, dim) and items (N, dim): the mean of the layers from ``first_layer`` on."""
        start = step(self.product, self.layer0) if self.first_layer else self.layer0
        return self.split(propagate([self.product] * (self.config.layers - self.first_layer), start))

    def split(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of users and of items."""
        users, items = nodes.split([self.num_users, self.num_items])
        return users, items

    @torch.inference_mode()
    def vectors(self) -> tuple[Tensor, Tensor]:
        """`forward` of a trained model, computed once."""
        if self._vectors is None:
            self._vectors = self()
        return self._vectors

    def item_table(self) -> Tensor:
        """(num_items, dim), layers averaged."""
        return self.vectors()[1]

    def known_rows(self, table: Tensor, users: np.ndarray) -> Tensor:
        """Rows of ``table`` (U, dim) of the given users, zeros for those without training interactions, (B, dim)."""
        known = users < self.num_users
        known[known] = self.user_degrees[users[known]] > 0
        rows = table[torch.from_numpy(np.where(known, users, 0)).to(table.device)]
        rows[torch.from_numpy(~known).to(table.device)] = 0.0
        return rows

    @torch.inference_mode()
    def folded_in(self, histories: Histories) -> Tensor:
        """Vectors of users whose neighbours are the distinct items of their histories, (B, dim)."""
        row = np.repeat(np.arange(len(histories)), histories.lengths)
        row, item = np.divmod(np.unique(row * self.num_items + histories.items), self.num_items)
        count = np.bincount(row, minlength=len(histories))
        device = self.layer0.device
        bags = torch.from_numpy(np.concatenate([[0], np.cumsum(count)])).to(device)
        shares = self._item_shares()
        of_items = functional.embedding_bag(
            torch.from_numpy(item).to(device), shares, bags, mode="sum", include_last_offset=True
        )
        scale = torch.from_numpy(np.maximum(count, 1)).to(device).float().rsqrt()[:, None]
        users = of_items * scale
        if self.first_layer == 0:
            users += self.known_rows(self.split(self.layer0)[0], histories.users) / (self.config.layers + 1)
        return users

    def _item_shares(self) -> Tensor:
        """What an item gives to a user with no other item, over all layers, (N, dim); computed once.

        A user's layers 1..L take the items' layers 0..L-1, each divided by sqrt(degree).
        """
        if self._shares is None:
            before_last = propagate([self.product] * (self.config.layers - 1), self.layer0)  # mean of layers 0..L-1
            share = self.config.layers / (self.config.layers + 1 - self.first_layer)
            degrees = torch.from_numpy(np.maximum(self.item_degrees, 1)).to(before_last.device).float()
            self._shares = self.split(before_last)[1] * (share * degrees.rsqrt())[:, None]
        return self._shares

    def triples(self, rng: np.random.Generator) -> Iterator[Tensor]:
        """User, positive and negative item numbers, (3, B) int64: every training pair once, in random order."""
        pairs = self.edges
        if (self.user_degrees == self.num_items).any():  # who touched everything has no negative
            pairs = pairs[:, self.user_degrees[pairs[0]] < self.num_items]
        drawn = negatives(pairs, self.num_items, rng)
        order = rng.permutation(len(drawn))
        for start in range(0, len(order), self.config.batch_size):
            chosen = order[start : start + self.config.batch_size]
            yield torch.from_numpy(np.stack([*pairs[:, chosen], drawn[chosen]])).to(self.layer0.device)


def edges(train: TrainView) -> np.ndarray:
    """Users and items of the graph's edges, (2, E) int64: each training pair once, by user, then item."""
    user = np.repeat(train.sequences.users, train.sequences.lengths)
    pairs = np.unique(user * train.num_items + train.sequences.items)
    return np.stack(np.divmod(pairs, max(train.num_items, 1)))


def negatives(positives: np.ndarray, num_items: int, rng: np.random.Generator) -> np.ndarray:
    """For each edge (2, E), sorted as `edges` gives them, an item outside its user's training items, (E,) int64.

    A user who touched every item would have none: leave such users out.
    """
    user, item = positives
    touched = user * num_items + item  # ascending
    drawn = np.empty(len(user), dtype=np.int64)
    left = np.arange(len(user))
    while len(left):
        drawn[left] = rng.integers(0, num_items, len(left))
        wanted = user[left] * num_items + drawn[left]
        nearest = touched[np.minimum(np.searchsorted(touched, wanted), len(touched) - 1)]
        left = left[nearest == wanted]
    return drawn


def bpr_loss(model: GraphModel, vectors: tuple[Tensor, Tensor], triple: Tensor) -> Tensor:
    """-log sigmoid(R_up - R_un), mean over the triples (3, B), and L2 on their layer-0 vectors.

    ``vectors``: of all users (U, dim) and items (N, dim).
    """
    (users, items), (user, positive, negative) = vectors, triple
    margin = (users[user] * (items[positive] - items[negative])).sum(1)
    ends = torch.cat([user, model.num_users + positive, model.num_users + negative])
    squares = model.layer0[ends].square().sum() / len(user)
    return functional.softplus(-margin).mean() + model.config.regularisation / 2 * squares


def info_nce(one: Tensor, other: Tensor, rows: Tensor, temperature: float, negatives: str = "batch") -> Tensor:
    """-log exp(cos(a_i, b_i) / t) / sum over j of exp(cos(a_i, b_j) / t), mean over the nodes ``rows`` (B,), once each.

    ``one``, ``other``: two views, (n, dim) each. j runs over ``rows`` ("batch") or over all n nodes ("all").
    """
    rows = rows.unique()
    queries = functional.normalize(one[rows], dim=1) / temperature
    keys = functional.normalize(other[rows] if negatives == "batch" else other, dim=1)
    targets = torch.arange(len(rows), device=rows.device) if negatives == "batch" else rows
    return losses.full_softmax(queries, keys, targets)
