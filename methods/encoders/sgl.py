"""SGL: LightGCN whose vectors must agree between two damaged copies of the graph (Wu et al., SIGIR 2021, 2010.10783).

    genrec-bench run --method sgl --dataset ml-100k --set sgl.augmentation=random_walk

Each epoch two views of the graph are drawn (section 3.1), and InfoNCE asks that a node be nearer to itself in the other
view than to other nodes (section 3.2):

- ``edge_drop``: a share of the edges is missing, the same ones in every layer.
- ``node_drop``: a share of the users and of the items is missing, with all their edges, the same ones in every layer.
- ``random_walk``: as edge_drop, but drawn anew for each layer.

Degrees, and with them the normalisation, are those of the damaged graph. loss = BPR + weight (InfoNCE of the batch's
users + InfoNCE of its positive items). Nothing is dropped at evaluation.

Deviation: ``negatives=batch`` by default: a node is told apart from the others of its batch, as in SELFRec's and
AGRec's copies; the paper compares with all nodes (``negatives=all``), which costs as many more products.
Deviation: a node of the batch counts once (the paper's sum over nodes); the authors' code counts it once a triple.
AGRec's copy never runs the random walk: its test ``aug_type == 0 or 1`` is always true.
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from genrec_bench.methods.encoders.graph import GraphConfig, GraphEncoder, bpr_loss, info_nce
from genrec_bench.methods.encoders.propagation import Product, propagate

Augmentation = Literal["edge_drop", "node_drop", "random_walk"]


class SGLConfig(GraphConfig):
    """Sizes as LightGCN's; the paper searched temperature, weight and rate for each data set."""

    augmentation: Augmentation = "edge_drop"  # random_walk: other edges in each layer
    rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1  # of edges or nodes dropped; with 0 both views were the same
    temperature: PositiveFloat = 0.2  # of the agreement
    weight: NonNegativeFloat = 0.01  # of the agreement, lambda_1 in the paper
    negatives: Literal["all", "batch"] = "batch"  # of the agreement: the batch's own nodes, or all

    search_space: ClassVar[dict[str, list[Any] | tuple[float, float]]] = {
        **GraphConfig.search_space,
        "augmentation": ["edge_drop", "node_drop", "random_walk"],
        "rate": [0.1, 0.2, 0.3],
        "temperature": [0.1, 0.2, 0.5],
        "weight": [0.003, 0.01, 0.03, 0.1],
    }


class SGL(GraphEncoder):
    """Self-supervised graph learning."""

    Config = SGLConfig

    def _step_losses(self, rng: np.random.Generator) -> Iterator[Tensor]:
        model, config = self.model, self.config
        views = [self._view(rng) for _ in range(2)]
        for triple in model.triples(rng):
            users, items = (
                info_nce(one, other, rows, config.temperature, config.negatives)
                for one, other, rows in zip(
                    *(model.split(propagate(view, model.layer0)) for view in views), triple[:2], strict=True
                )
            )
            yield bpr_loss(model, model(), triple) + config.weight * (users + items)

    def _view(self, rng: np.random.Generator) -> list[Product]:
        """The step of each layer over one damaged copy of the graph."""
        model, config = self.model, self.config
        kept = kept_edges(
            model.edges, model.num_users, model.num_items, config.augmentation, config.rate, config.layers, rng
        )
        products = [model.product_over(model.edges[:, mask]) for mask in kept]
        return products * (config.layers // len(products))


def kept_edges(
    edges: np.ndarray,
    num_users: int,
    num_items: int,
    augmentation: Augmentation,
    rate: float,
    layers: int,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Which edges (2, E) a view keeps, (E,) bool: one mask for all layers, or one for each with ``random_walk``."""
    if augmentation == "node_drop":
        users, items = _kept(num_users, rate, rng), _kept(num_items, rate, rng)
        return [users[edges[0]] & items[edges[1]]]
    return [_kept(edges.shape[1], rate, rng) for _ in range(layers if augmentation == "random_walk" else 1)]


def _kept(count: int, rate: float, rng: np.random.Generator) -> np.ndarray:
    """All but a share of ``count`` things, rounded down, (count,) bool."""
    kept = np.ones(count, dtype=bool)
    kept[rng.permutation(count)[: int(count * rate)]] = False
    return kept
