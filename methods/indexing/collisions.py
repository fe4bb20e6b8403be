"""Items that share a code: a counter level, Sinkhorn's repair of the last level, moves to the nearest free code.

What stays is a collision: a ranking expands the code to its items (`genrec_bench.methods.decoding`).
"""

import numpy as np
import torch
from torch import Tensor

from genrec_bench.datasets.errors import InputError
from genrec_bench.methods.indexing.index import ItemIndex
from genrec_bench.methods.indexing.kmeans import squared_distances
from genrec_bench.methods.indexing.residual import Quantised
from genrec_bench.methods.indexing.sinkhorn import centred, uniform_plan

ROUNDS = 20  # of Sinkhorn's repair, as LC-Rec and LETTER


def with_counter(index: ItemIndex) -> ItemIndex:
    """A further level that counts the items of one code, by item number (TIGER, section 3.1): every code is distinct.

    0 for an item alone; the level's size is the largest number of items of one code.
    """
    if index.variable:
        raise InputError("A counter level needs codes of one length; this index has several")
    groups = index.groups
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups)
    counter = np.empty(len(groups), dtype=np.int32)
    counter[order] = np.arange(len(groups)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    letter = chr(ord("a") + index.num_levels)
    names = tuple(f"<{letter}_{number}>" for number in range(int(sizes.max())))
    return ItemIndex(np.column_stack([index.codes, counter]), (*index.tokens, names))


def sinkhorn_repair(quantised: Quantised, epsilon: float, rounds: int = ROUNDS) -> np.ndarray:
    """Codes (N, L) int32 after re-assigning the last level of colliding items (LC-Rec, ``generate_indices.py``).

    In each round, the items of one code share the last level's codes evenly among them, by optimal transport. Each gets
    one of its share, the one that others would mind most, which is seldom a near one. Items with the same residual
    cannot be parted this way and stay.
    """
    codes = quantised.codes.copy()
    stuck: set[tuple[int, ...]] = set()
    for _ in range(rounds):
        groups = [group for group in colliding(codes) if tuple(group) not in stuck]
        if not groups:
            break
        by_size: dict[int, list[np.ndarray]] = {}
        for group in groups:
            by_size.setdefault(len(group), []).append(group)
        for same_size in by_size.values():
            members = np.stack(same_size)  # (G, g)
            moved = _spread(quantised.residuals[torch.from_numpy(members)], quantised.codebook, epsilon)  # (G, g)
            codes[members, -1] = moved
            together = (moved == moved[:, :1]).all(1)
            stuck.update(tuple(group) for group in members[together])
    return codes


def _spread(residuals: Tensor, codebook: Tensor, epsilon: float) -> np.ndarray:
    """Last-level codes (G, g) of G groups of g items, each group by a transport plan of its own."""
    sets, size, dim = residuals.shape
    distances = squared_distances(residuals.reshape(-1, dim), codebook).view(sets, size, -1)
    codes: np.ndarray = uniform_plan(centred(distances), epsilon).argmax(2).numpy()
    return codes


def colliding(codes: np.ndarray) -> list[np.ndarray]:
    """The items of each code that more than one item has, ascending; groups in code order."""
    groups = np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)
    order = np.argsort(groups, kind="stable")
    ends = np.flatnonzero(np.diff(groups[order])) + 1
    return [group for group in np.split(order, ends) if len(group) > 1]


def separate(codes: np.ndarray, residuals: Tensor, codebook: Tensor) -> np.ndarray:
    """Move all but the first item of each code to the nearest free code of the last level, (N, L) int32.

    ``residuals`` (N, d) is what the last level codes, ``codebook`` (K, d) its vectors. Where all K codes under a prefix
    are taken, items stay. Deviation: LC-Rec and LETTER leave items with identical text in collision.
    """
    codes = codes.copy()
    prefixes = np.unique(codes[:, :-1], axis=0, return_inverse=True)[1].reshape(-1)
    members = np.split(np.argsort(prefixes, kind="stable"), np.cumsum(np.bincount(prefixes))[:-1])
    for group in colliding(codes):
        taken = np.zeros(len(codebook), dtype=bool)
        taken[codes[members[prefixes[group[0]]], -1]] = True
        distances = squared_distances(residuals[torch.from_numpy(group[1:])], codebook).numpy()
        for item, distance in zip(group[1:], distances, strict=True):
            if taken.all():
                break
            codes[item, -1] = np.where(taken, np.inf, distance).argmin()
            taken[codes[item, -1]] = True
    return codes
