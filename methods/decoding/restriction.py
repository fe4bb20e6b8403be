"""Which items each row may get: seen items left out, or a set of its own allowed.

Kept as sorted keys (row, node) per depth, never as a table of rows by items. A node is dead exactly when every item
below it is; in a set of allowed items a node is alive exactly when some item below it is.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genrec_bench.datasets.interactions import Histories
from genrec_bench.methods.decoding.trie import HostTrie, ItemTrie


@dataclass(frozen=True, eq=False)
class Restriction:
    """Nodes closed, or alone open, to each row of a batch.

    ``keys[d]`` sorted int64: row * n_d + node for d = 1..L, and row * N + place in ``ItemTrie.items`` for d = L + 1
    (``keys[0]`` is empty). ``most[d]``: the most of them that one row has under one node of depth d - 1.
    ``open`` says whether the keys are all that is open (allowed items) or what is closed (excluded items).
    """

    keys: tuple[Tensor, ...]
    sizes: tuple[int, ...]
    most: tuple[int, ...]
    open: bool

    def allows(self, depth: int, first: Tensor, last: Tensor, width: int) -> Tensor | None:
        """Which of the children ``first`` to ``last`` (B, W) int64, of depth ``depth``, are open: (B, W, width) bool.

        Those past ``width`` are not answered. None stands for all.
        """
        most = self.most[depth]
        if most == 0 and not self.open:
            return None
        keys = self.keys[depth]
        base = (torch.arange(len(first), device=first.device) * self.sizes[depth])[:, None]
        low = torch.searchsorted(keys, base + first)
        high = torch.searchsorted(keys, base + last)
        at = low.unsqueeze(-1) + torch.arange(most, device=first.device)
        place = keys[at.clamp(max=max(len(keys) - 1, 0))] - (base + first).unsqueeze(-1) if most else at
        place = torch.where(at < high.unsqueeze(-1), place, width).clamp(max=width)  # the spare column is cut off
        marked = torch.zeros(*first.shape, width + 1, dtype=torch.bool, device=first.device).scatter_(-1, place, True)
        marked = marked[..., :width]
        return marked if self.open else ~marked


def restrict(trie: ItemTrie, exclude: Histories | None = None, allowed: Histories | None = None) -> Restriction | None:
    """The restriction of B rows: all but the items of ``exclude``, or the items of ``allowed`` but not of ``exclude``.

    Items that are not in the trie do not matter. None where there is nothing to restrict.
    """
    if allowed is None and exclude is None:
        return None
    host = trie.host
    is_open = allowed is not None
    if allowed is None:
        items = _keys_of(host, exclude)
    else:
        items = np.setdiff1d(_keys_of(host, allowed), _keys_of(host, exclude), assume_unique=True)
    row, place = np.divmod(items, trie.num_items)
    keys, most = [np.empty(0, dtype=np.int64)], [0]
    parents = row  # the (row, node) pair above each item, numbered as at depth 0: one root a row
    for depth in range(1, trie.num_levels + 1):
        nodes = host.node_of(depth, place)
        pairs = row * len(host.codes[depth]) + nodes
        start = np.flatnonzero(np.diff(pairs, prepend=-1))
        if not is_open:
            below = host.starts[depth][nodes[start] + 1] - host.starts[depth][nodes[start]]
            start = start[np.diff(start, append=len(pairs)) == below]
        keys.append(pairs[start])
        most.append(_longest_run(parents[start]))
        parents = pairs
    keys.append(items)
    most.append(_longest_run(parents))
    sizes = (*(len(codes) for codes in host.codes), trie.num_items)
    return Restriction(tuple(torch.from_numpy(k).to(trie.device) for k in keys), sizes, tuple(most), is_open)


def _keys_of(host: HostTrie, histories: Histories | None) -> np.ndarray:
    """Sorted distinct keys row * N + place of the items that are in the trie."""
    if histories is None:
        return np.empty(0, dtype=np.int64)
    place = host.position[histories.items]
    row = np.repeat(np.arange(len(histories)), histories.lengths)
    return np.unique((row * len(host.items) + place)[place >= 0])


def _longest_run(values: np.ndarray) -> int:
    """Length of the longest run of equal neighbours."""
    starts = np.flatnonzero(np.diff(values, prepend=-1))
    return int(np.diff(starts, append=len(values)).max(initial=0))
