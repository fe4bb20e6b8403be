"""One step over the user-item graph, and layers of them: D^-1/2 A D^-1/2 times the nodes' vectors.

The same product three ways; all agree to float tolerance in values and gradients:

- ``bag``: torch's embedding bag, on a CPU. A node's neighbours are a bag of rows, weighted and summed; the kernel
  fetches rows ahead and takes 32-bit indices. Amazon Beauty, 64 wide, one core: 1.7 ms.
- ``sparse``: a torch.sparse CSR matrix, on CUDA. On that CPU (MKL): 6.6 ms; as COO: 15.6 ms.
- ``dgl``: dgl 1.1.3's copy-and-sum on int32 CSR between two scalings by D^-1/2: 3.4 ms without the scalings; its
  weighted product: 30 ms.

The choice follows the device; ``GENREC_BENCH_PROPAGATION`` names another one.

Deviation: the plan was dgl on CPUs that have it, when the rival was torch.sparse; the bag is faster than both and is
always there, so dgl runs only where it is asked for.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from genrec_bench.datasets.errors import InputError, unknown

Product = Callable[[Tensor], Tensor]  # (nodes, dim) -> (nodes, dim)
VARIABLE = "GENREC_BENCH_PROPAGATION"


@dataclass(frozen=True, eq=False)
class Adjacency:
    """D^-1/2 A D^-1/2 of a bipartite graph, (U + N, U + N), users first: symmetric, sparse rows."""

    rows: Tensor  # (nodes + 1,) int32, entries of row r are rows[r]:rows[r + 1]
    columns: Tensor  # (2 E,) int32, ascending within a row
    weights: Tensor  # (2 E,) float32

    @property
    def nodes(self) -> int:
        return len(self.rows) - 1

    @property
    def degrees(self) -> Tensor:
        """Neighbours of each node, (nodes,) int32."""
        return self.rows.diff()

    def to_sparse(self) -> Tensor:
        """As a torch.sparse CSR matrix."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse (CSR|invariant)")  # "in beta state": nothing to act on
            return torch.sparse_csr_tensor(self.rows, self.columns, self.weights, size=(self.nodes, self.nodes))


def normalised_adjacency(edges: np.ndarray, num_users: int, num_items: int) -> Adjacency:
    """The graph of ``edges`` (2, E): user and item numbers, each pair once, by user, then item."""
    from scipy.sparse import csr_array

    user, item = edges
    of_user, of_item = np.bincount(user, minlength=num_users), np.bincount(item, minlength=num_items)
    weights = (1.0 / np.sqrt(of_user[user] * of_item[item])).astype(np.float32)
    first = np.concatenate([[0], np.cumsum(of_user)])
    items_rows = csr_array((weights, item, first), shape=(num_users, num_items)).tocsc()
    return Adjacency(
        torch.from_numpy(np.concatenate([first, first[-1] + items_rows.indptr[1:]]).astype(np.int32)),
        torch.from_numpy(np.concatenate([item + num_users, items_rows.indices], dtype=np.int32, casting="unsafe")),
        torch.from_numpy(np.concatenate([weights, items_rows.data])),
    )


def bag_product(adjacency: Adjacency, device: str) -> Product:
    rows, columns, weights = (part.to(device) for part in (adjacency.rows, adjacency.columns, adjacency.weights))

    def product(vectors: Tensor) -> Tensor:
        return functional.embedding_bag(
            columns, vectors, rows, mode="sum", per_sample_weights=weights, include_last_offset=True
        )

    return product


def sparse_product(adjacency: Adjacency, device: str) -> Product:
    matrix = adjacency.to_sparse().to(device)
    return lambda vectors: matrix @ vectors


def dgl_product(adjacency: Adjacency, device: str) -> Product:
    os.environ.setdefault("DGLBACKEND", "pytorch")  # without it dgl writes a file to the home folder
    try:
        import dgl
    except ImportError as error:
        raise InputError(
            f"{VARIABLE}=dgl, but dgl cannot be imported ({error}): pip install 'genrec-bench[graph]'"
        ) from error
    if device != "cpu":
        raise InputError(f"{VARIABLE}=dgl runs on a CPU only, not on {device}")
    graph = dgl.graph(("csc", (adjacency.rows, adjacency.columns, [])), num_nodes=adjacency.nodes)
    scale = adjacency.degrees.clamp_min(1).float().rsqrt()[:, None]  # (nodes, 1)

    def product(vectors: Tensor) -> Tensor:
        summed: Tensor = dgl.ops.copy_u_sum(graph, vectors * scale)
        return summed.mul_(scale)

    return product


BACKENDS: dict[str, Callable[[Adjacency, str], Product]] = {
    "bag": bag_product,
    "dgl": dgl_product,
    "sparse": sparse_product,
}


def backend_for(device: str) -> str:
    """Name of the back end that runs on ``device`` ("cpu" or "cuda")."""
    wanted = os.environ.get(VARIABLE) or ("sparse" if device == "cuda" else "bag")
    if wanted not in BACKENDS:
        raise unknown(f"back end in {VARIABLE}:", wanted, BACKENDS)
    return wanted


def step(product: Product, vectors: Tensor) -> Tensor:
    """``product(vectors)`` with a gradient, (nodes, dim)."""
    after: Tensor = _Step.apply(vectors, product)
    return after


def propagate(products: Sequence[Product], layer0: Tensor) -> Tensor:
    """Mean of layer 0 and the layers that each product makes of the one before it, (nodes, dim), with a gradient."""
    mean: Tensor = _LayerMean.apply(layer0, products)
    return mean


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, product: Product) -> Tensor:
        ctx.product = product
        return product(vectors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.product(gradients[0].contiguous()), None  # the matrix is symmetric


class _LayerMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layer0: Tensor, products: Sequence[Product]) -> Tensor:
        ctx.products = products
        return _layer_mean(products, layer0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient, products = gradients[0].contiguous(), ctx.products
        if all(product is products[0] for product in products):
            # a polynomial of a symmetric matrix is its own transpose: the gradient is propagated as the vectors are
            return _layer_mean(products, gradient), None
        sums = gradient
        for product in reversed(products):
            sums = product(sums).add_(gradient)
        return sums / (len(products) + 1), None


def _layer_mean(products: Sequence[Product], layer: Tensor) -> Tensor:
    total = layer.clone()
    for product in products:
        layer = product(layer)
        total += layer
    return total.div_(len(products) + 1)
