"""LightGCN: vectors of users and items by propagation over who touched what (He et al., SIGIR 2020, arXiv 2002.02126).

E^(l+1) = D^-1/2 A D^-1/2 E^(l) over the bipartite graph of training interactions (each pair once, no self loops); a
node's vector is the mean of layers 0..L. Trained pairwise (BPR) with one uniform negative outside the user's training
items, and L2 on the layer-0 vectors of the batch, as in the authors' code.

A node without interactions has no neighbours: its vector is its layer-0 vector / (L + 1), at random and moved only as a
negative. Give such items something better with `genrec_bench.methods.encoders.behaviour.with_cold_items`.

Deviation: AGRec's copy regularises the propagated vectors, by the norm and not its square; here it is as above.
"""

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from genrec_bench.datasets.interactions import Histories, TrainView
from genrec_bench.methods.base import Context
from genrec_bench.methods.next_item import TrainedScorer, TrainingConfig, train_epochs


class LightGCNConfig(TrainingConfig):
    """AGRec's sizes, but for the width."""

    dim: PositiveInt = 64
    layers: PositiveInt = 2
    regularisation: NonNegativeFloat = 1e-4  # of half the squared layer-0 vectors, a triple
    batch_size: PositiveInt = 2048  # triples a step


class LightGCN(TrainedScorer):
    """Scores items for the users it was trained on: a history counts only through its user's number."""

    Config = LightGCNConfig
    family = "graph"

    def fit(self, train: TrainView, context: Context) -> None:
        self._build(train, context)
        step_losses = partial(_step_losses, self.model, train, self.config)
        train_epochs(self.model, self, self.config, context, step_losses)

    def score(self, histories: Histories) -> Tensor:
        users, items = self.model.vectors()
        return users[torch.from_numpy(histories.users).to(users.device)] @ items.T

    def _build(self, train: TrainView, context: Context) -> None:
        self.model = LightGCNModel(train, self.config).to(context.device)


class LightGCNModel(nn.Module):
    """Layer-0 vectors of users, then items, Xavier uniform; the graph is no part of the saved weights."""

    adjacency: Tensor

    def __init__(self, train: TrainView, config: LightGCNConfig):
        super().__init__()
        self.num_users, self.num_items, self.layers = train.num_users, train.num_items, config.layers
        self.layer0 = nn.Parameter(torch.empty(self.num_users + self.num_items, config.dim))
        nn.init.xavier_uniform_(self.layer0)
        self.register_buffer("adjacency", normalised_adjacency(train), persistent=False)
        self._vectors: tuple[Tensor, Tensor] | None = None

    def train(self, mode: bool = True) -> "LightGCNModel":
        """As any module's; called whenever weights have changed or will, so the propagated vectors go."""
        self._vectors = None
        super().train(mode)
        return self

    def forward(self) -> tuple[Tensor, Tensor]:
        """Vectors of users (U, dim) and items (N, dim)."""
        users, items = propagate(self.adjacency, self.layer0, self.layers).split([self.num_users, self.num_items])
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


def edges(train: TrainView) -> np.ndarray:
    """Users and items of the graph's edges, (2, E) int64: each training pair once, by user, then item."""
    user = np.repeat(train.sequences.users, train.sequences.lengths)
    return np.unique(np.stack([user, train.sequences.items]), axis=1).astype(np.int64)


def normalised_adjacency(train: TrainView) -> Tensor:
    """D^-1/2 A D^-1/2 of the bipartite graph, (U + N, U + N) float32 sparse rows; users come first."""
    from scipy.sparse import csr_array

    user, item = edges(train)
    item = item + train.num_users
    nodes = train.num_users + train.num_items
    degree = np.bincount(np.concatenate([user, item]), minlength=nodes)
    weight = 1.0 / np.sqrt(degree[user] * degree[item])
    ends = np.concatenate([user, item]), np.concatenate([item, user])
    matrix = csr_array((np.tile(weight, 2), ends), shape=(nodes, nodes))
    rows, columns = (torch.from_numpy(part.astype(np.int32)) for part in (matrix.indptr, matrix.indices))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse (CSR|invariant)")  # "in beta state": nothing to act on
        return torch.sparse_csr_tensor(rows, columns, torch.from_numpy(matrix.data).float(), size=(nodes, nodes))


def propagate(adjacency: Tensor, layer0: Tensor, layers: int) -> Tensor:
    """Mean of layers 0..``layers``, (nodes, dim); ``adjacency`` is symmetric, which the gradient relies on."""
    mean: Tensor = _Propagation.apply(layer0, adjacency, layers)
    return mean


class _Propagation(torch.autograd.Function):
    """A polynomial of a symmetric matrix is its own transpose: the gradient is propagated as the vectors are."""

    @staticmethod
    def forward(ctx: Any, layer0: Tensor, adjacency: Tensor, layers: int) -> Tensor:
        ctx.adjacency, ctx.layers = adjacency, layers
        return _layer_mean(adjacency, layer0, layers)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _layer_mean(ctx.adjacency, gradients[0].contiguous(), ctx.layers), None, None


def _layer_mean(adjacency: Tensor, layer: Tensor, layers: int) -> Tensor:
    total = layer.clone()
    for _ in range(layers):
        layer = adjacency @ layer
        total += layer
    return total / (layers + 1)


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


def _step_losses(
    model: LightGCNModel, train: TrainView, config: LightGCNConfig, rng: np.random.Generator
) -> Iterator[Tensor]:
    """BPR over every training pair once, in random order."""
    positives = edges(train)
    positives = positives[:, np.bincount(positives[0], minlength=train.num_users)[positives[0]] < train.num_items]
    triples = np.stack([*positives, negatives(positives, train.num_items, rng)])[:, rng.permutation(positives.shape[1])]
    for start in range(0, triples.shape[1], config.batch_size):
        triple = torch.from_numpy(triples[:, start : start + config.batch_size]).to(model.layer0.device)
        user, positive, negative = triple
        users, items = model()
        margin = (users[user] * (items[positive] - items[negative])).sum(1)
        ends = torch.cat([user, model.num_users + positive, model.num_users + negative])
        squares = model.layer0[ends].square().sum() / len(user)
        yield functional.softplus(-margin).mean() + config.regularisation / 2 * squares
