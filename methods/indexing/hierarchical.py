"""A tree of clusters as codes: each cluster is split again until it holds one item (EAGER-LLM, section 3.2).

No cluster may take more items than the levels below it can tell apart, so every item gets a code of its own and no
repair of collisions exists.
"""

import math

import numpy as np
import torch
from torch import Tensor

from genrec_bench.datasets.errors import InputError
from genrec_bench.methods.indexing.kmeans import (
    SEED,
    assign_with_room,
    kmeans,
    lloyd,
    plus_plus,
    sample_size,
    squared_distances,
)

ROOT_RESTARTS = 10
ITERATIONS = 100
BATCH_NUMBERS = 2**22  # of padded points in such a batch: 16 MiB


def branching(num_items: int, depth: int, limit: int = 256, leaf_size: int = 1) -> int:
    """Children of a node, so that a tree of ``depth`` levels ends in leaves of about ``leaf_size`` items.

    Leaves of one item need room to spare, twice the items in all, or the cap would tear neighbours apart.
    Raises InputError where ``limit`` children a node are too few for single-item leaves.
    """
    wanted = 2 * num_items if leaf_size == 1 else num_items / leaf_size
    children = max(math.ceil(wanted ** (1 / depth) - 1e-9), 2)
    if leaf_size == 1 and min(children, limit) ** depth < num_items:
        fitting = math.ceil(num_items ** (1 / depth) - 1e-9)
        raise InputError(
            f"A tree of {depth} levels with at most {limit} children a node has {limit**depth:,} leaves; "
            f"the catalogue has {num_items:,} items: ask for {fitting} codes a level or more, or for more levels"
        )
    return min(children, limit)


def standardised(vectors: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance per dimension, then unit length, (N, d) float32: what EAGER-LLM's trees cluster."""
    centred = vectors - vectors.mean(0)
    spread = centred.std(0)
    scaled = centred / np.where(spread > 0, spread, 1.0)
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    return np.asarray(scaled / np.where(length > 0, length, 1.0), dtype=np.float32)


def hierarchical_codes(
    vectors: np.ndarray, depth: int, children: int, seed: int, singletons: bool = True
) -> np.ndarray:
    """Path of each item of ``vectors`` (N, d) in a tree of clusters, (N, depth) int32, each code below ``children``.

    A node with m items has min(children, m) children, numbered by decreasing size, then by smallest item. With
    ``singletons``, a child on level l takes at most children ** (depth - l) items, which makes all codes distinct;
    without, leaves keep what k-means gives them. Raises InputError where the leaves are fewer than the items.
    """
    if singletons and children**depth < len(vectors):
        raise InputError(
            f"{children} children on {depth} levels give {children**depth:,} leaves, {len(vectors):,} items"
        )
    points = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
    generator = torch.Generator().manual_seed(seed)
    codes = np.zeros((len(vectors), depth), dtype=np.int32)
    nodes = [np.arange(len(vectors))]
    for level in range(depth):
        room = children ** (depth - level - 1) if singletons else len(vectors)
        below = []
        for group in _batches(nodes, children, points.shape[1]):
            for node, labels in zip(group, _split(points, group, children, room, generator, level == 0), strict=True):
                number, parts = _numbered(node, labels)
                codes[node, level] = number
                below += [part for part in parts if len(part) > 1]  # a lone item has code 0 on all further levels
        nodes = below
    return codes


def _batches(nodes: list[np.ndarray], children: int, dim: int) -> list[list[np.ndarray]]:
    """Nodes in groups that are split together: similar sizes, as many as fit when padded to the first one's."""
    batches = [[node for node in nodes if len(node) <= children]]
    together = sample_size(SEED, children)  # a larger node is clustered by itself, from samples
    width = 0  # items of the open batch's first node
    for node in sorted((node for node in nodes if len(node) > children), key=len, reverse=True):
        if not width or width > together or (len(batches[-1]) + 1) * width * max(dim, width) > BATCH_NUMBERS:
            batches.append([])
            width = len(node)
        batches[-1].append(node)
    return [batch for batch in batches if batch]


def _split(
    points: Tensor, nodes: list[np.ndarray], children: int, room: int, generator: torch.Generator, root: bool
) -> list[np.ndarray]:
    """A label below ``children`` for the items of each node."""
    if len(nodes[0]) <= children:
        return [np.arange(len(node)) for node in nodes]
    if len(nodes) == 1:
        own = points[torch.from_numpy(nodes[0])]
        centroids = kmeans(own, children, generator, ROOT_RESTARTS if root else 1, ITERATIONS)[None]
        batch = own[None]
    else:
        lengths = torch.tensor([len(node) for node in nodes])
        valid = torch.arange(int(lengths.max())) < lengths[:, None]  # (B, m)
        batch = torch.zeros(*valid.shape, points.shape[1])
        batch[valid] = points[torch.from_numpy(np.concatenate(nodes))]
        drawn = plus_plus(_apart(batch), valid, children, generator)  # (B, children)
        centroids, _ = lloyd(batch, valid, batch[torch.arange(len(batch))[:, None], drawn], ITERATIONS)
    return [
        assign_with_room(squared_distances(batch[row, : len(node)], centroids[row]).numpy(), room)
        for row, node in enumerate(nodes)
    ]


def _apart(points: Tensor) -> Tensor:
    """Squared distances within each set, (B, m, m) from (B, m, d)."""
    norms = points.square().sum(2)
    apart = torch.baddbmm(norms[:, None, :], points, points.transpose(1, 2), alpha=-2) + norms[:, :, None]
    return apart.clamp_min_(0)


def _numbered(node: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Codes of a node's items, and its children in code order: by decreasing size, then smallest item."""
    order = np.argsort(labels, kind="stable")
    parts = np.split(node[order], np.flatnonzero(np.diff(labels[order])) + 1)  # ascending items in each
    parts.sort(key=lambda part: (-len(part), part[0]))
    number = np.empty(len(node), dtype=np.int32)
    code_of_part = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    number[np.searchsorted(node, np.concatenate(parts))] = code_of_part
    return number, parts
