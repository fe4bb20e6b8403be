"""All codes of an item index as a prefix tree of tensors: the only items a decoder can name.

Items are sorted by code, so the children of a node, the leaves below it and the items below it are contiguous ranges.
Nodes are numbered per depth in code order; the children of node n of depth l are ``rows[l][n]`` up to, not including,
``rows[l][n + 1]``. Nothing but range starts and codes is stored: 12 bytes a node and 4 an item, no table over a
vocabulary. (STATIC, the closest published design, adds dense tables for the first levels to save a search for the
child; here a child needs no search, its number is its place in the range.)

A code that is shorter than the index has levels ends in END, which is a child like any other: code -1, first among its
siblings. Below it the tree goes on with one unreachable node a level, so that every leaf has depth L.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from genrec_bench.methods.indexing.index import ItemIndex

END = -1  # the code of a node that ends a code before the last level


class ItemTrie:
    """The prefix tree of N items with codes on L levels.

    ``codes[d]`` (n_d,) int32: last code of each node of depth d, END included (``codes[0]`` is the root's, unused).
    ``rows[d]`` (n_d + 1,) int32 for d < L: first child of each node. ``starts[d]`` (n_d + 1,) int32: place in ``items``
    of the first item below each node. ``items`` (N,) int32: item numbers by code. ``fan_out[d]``: most children that a
    reachable node of depth d has. Leaves are the nodes of depth L, numbered as ``ItemIndex.groups``.
    """

    def __init__(self, host: "HostTrie", device: torch.device | str = "cpu"):
        self.host = host
        self.device = torch.device(device)
        self.codes = tuple(torch.from_numpy(column).to(device) for column in host.codes)
        self.rows = tuple(torch.from_numpy(column).to(device) for column in host.rows)
        self.starts = tuple(torch.from_numpy(column).to(device) for column in host.starts)
        self.items = torch.from_numpy(host.items).to(device)
        self.level_sizes = host.level_sizes
        self.variable = host.variable
        self.fan_out = host.fan_out

    @classmethod
    def from_index(
        cls, index: ItemIndex, order: np.ndarray | None = None, items: np.ndarray | None = None
    ) -> "ItemTrie":
        """The trie of all items, or of the given ``items`` (any order, no repeats) only; numbers stay the index's.

        Items with one and the same code stand in ascending ``order`` (N,), equal orders by item number: pass minus the
        training counts to have the most popular first.
        """
        return cls(HostTrie(index, order, items))

    def to(self, device: torch.device | str) -> "ItemTrie":
        """The same trie on another device; the host's arrays are shared."""
        return self if torch.device(device) == self.device else ItemTrie(self.host, device)

    @property
    def num_levels(self) -> int:
        return len(self.level_sizes)

    @property
    def num_items(self) -> int:
        return len(self.items)

    @property
    def num_leaves(self) -> int:
        return len(self.codes[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.numel() * t.element_size() for t in (*self.codes, *self.rows, *self.starts, self.items))

    def children(self, level: int, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Children of ``nodes`` (...) int64 of depth ``level``, -1 for none: their codes, numbers and which are real.

        All (..., fan_out[level]): int64 END included, int64, bool. What is not real has numbers within bounds.
        """
        rows = self.rows[level]
        inside = nodes.clamp(min=0)
        first = rows[inside].long()
        last = torch.where(nodes >= 0, rows[inside + 1].long(), first)
        found = first.unsqueeze(-1) + torch.arange(self.fan_out[level], device=nodes.device)
        real = found < last.unsqueeze(-1)
        found = found.clamp(max=len(self.codes[level + 1]) - 1)
        return self.codes[level + 1][found].long(), found, real

    def descend(self, level: int, nodes: Tensor, codes: Tensor) -> Tensor:
        """The child with the given code, -1 where there is none; ``nodes`` and ``codes`` (...) int64, so the answer."""
        child_codes, found, real = self.children(level, nodes)
        hit = real & (child_codes == codes.unsqueeze(-1))
        return torch.where(hit.any(-1), found.gather(-1, hit.byte().argmax(-1, keepdim=True)).squeeze(-1), -1)

    def leaf(self, depth: int, nodes: Tensor) -> Tensor:
        """First leaf below each node of ``depth``: the leaf itself for nodes that end a code. (...) int64 >= 0."""
        for level in range(depth, self.num_levels):
            nodes = self.rows[level][nodes].long()
        return nodes

    @property
    def leaf_of_item(self) -> np.ndarray:
        """Leaf of each item of the index, (num_items of the index,) int64, -1 for items that are not in the trie."""
        return self.host.node_of(self.num_levels, self.host.position)


class HostTrie:
    """The arrays of an `ItemTrie` in NumPy, and what is looked up per item on the host."""

    def __init__(self, index: ItemIndex, order: np.ndarray | None, items: np.ndarray | None):
        permutation = _sorted_items(index, order, items)
        codes = index.codes[permutation]
        self.items = permutation.astype(np.int32)
        self.index_items = index.num_items
        self.level_sizes = index.level_sizes
        self.variable = bool((codes < 0).any())
        fresh = np.zeros(len(codes), dtype=bool)  # where the prefix differs from the row before
        fresh[0] = True
        parents = np.zeros(1, dtype=np.int64)
        self.codes: tuple[np.ndarray, ...] = (np.zeros(1, dtype=np.int32),)
        self.starts: tuple[np.ndarray, ...] = (_closed(parents, len(codes)),)
        self.rows: tuple[np.ndarray, ...] = ()
        self.fan_out: tuple[int, ...] = ()
        for column in codes.T:
            fresh[1:] |= column[1:] != column[:-1]
            starts = np.flatnonzero(fresh)
            rows = _closed(np.searchsorted(starts, parents), len(starts))
            self.codes += (np.ascontiguousarray(column[starts]),)
            self.starts += (_closed(starts, len(codes)),)
            self.rows += (rows,)
            self.fan_out += (int(np.diff(rows).max()),)
            parents = starts

    @cached_property
    def position(self) -> np.ndarray:
        """Place of each item of the index in ``items``, (num_items of the index,) int64, -1 where absent."""
        found = np.full(self.index_items, -1, dtype=np.int64)
        found[self.items] = np.arange(len(self.items))
        return found

    def node_of(self, depth: int, positions: np.ndarray) -> np.ndarray:
        """Node of ``depth`` above each place in ``items``; -1 stays -1."""
        found: np.ndarray = np.searchsorted(self.starts[depth], positions, side="right") - 1
        return found


def _closed(starts: np.ndarray, end: int) -> np.ndarray:
    """Range starts with the end of the last range, int32."""
    return np.append(starts, end).astype(np.int32)


def _sorted_items(index: ItemIndex, order: np.ndarray | None, items: np.ndarray | None) -> np.ndarray:
    """Item numbers by code, then by ``order``, then by number."""
    chosen = np.arange(index.num_items) if items is None else np.sort(np.asarray(items, dtype=np.int64))
    if not len(chosen):
        raise ValueError("A trie needs at least one item")
    if order is not None:
        chosen = chosen[np.argsort(np.asarray(order)[chosen], kind="stable")]
    keys = _keys(index.codes if items is None and order is None else index.codes[chosen], index.level_sizes)
    by_code = np.argsort(keys[0], kind="stable") if len(keys) == 1 else np.lexsort(keys[::-1])
    return chosen[by_code]


def _keys(codes: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """Integers that sort as the codes do: one for all levels where 63 bits hold it, otherwise as few as possible."""
    keys: list[np.ndarray] = []
    room = 0
    for column, size in zip(codes.T, sizes, strict=True):
        digit = column.astype(np.int64) + 1
        if room < size + 1:
            keys.append(digit)
            room = 2**63 // (size + 1)
        else:
            keys[-1] *= size + 1
            keys[-1] += digit
            room //= size + 1
    return keys
