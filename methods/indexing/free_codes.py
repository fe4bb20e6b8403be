"""Codes of two sources whose trees end in coarse leaves: items that agree in all codes move to the nearest free code.

The rule of EAGER-LLM's `leaf=coarse`. No token is ever added.
"""

import numpy as np

from genrec_bench.methods.indexing.quality import PoorIndex


def move_to_free(fixed: np.ndarray, codes: np.ndarray, vectors: np.ndarray, children: int) -> tuple[np.ndarray, int]:
    """Distinct codes within each group of ``fixed``: the new ``codes`` (N, D) int32, and how many items moved.

    ``fixed`` (N,) numbers what stays (the other source's codes); ``codes`` is the path in a tree of ``children``
    children a node over ``vectors`` (N, d). Of the items that agree in both, the one nearest to its leaf's mean stays;
    the others, by number, move to the nearest leaf of the same parent that is free within their group, or else to the
    nearest parent under the same grandparent that has a free leaf, and so on upwards. Leaves without items
    come last, by number. Raises PoorIndex where no leaf is free.
    """
    tree = _Tree(codes, vectors, children)
    moved = codes.astype(np.int32, copy=True)
    taken: dict[int, set[tuple[int, ...]]] = {}
    for group, path in zip(fixed.tolist(), map(tuple, codes.tolist()), strict=True):
        taken.setdefault(group, set()).add(path)
    groups = np.unique(np.column_stack([fixed, codes]), axis=0, return_inverse=True)[1].reshape(-1)
    order = np.argsort(groups, kind="stable")
    count = 0
    for members in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        if len(members) == 1:
            continue
        path = tuple(codes[members[0]].tolist())
        stays = members[tree.distances(vectors[members], [path])[:, 0].argmin()]
        for item in members[members != stays]:
            free = tree.nearest_free(vectors[item], path, taken[int(fixed[item])])
            if free is None:
                raise PoorIndex(f"No free code is left for item {item}: ask for more codes a level")
            moved[item] = free
            taken[int(fixed[item])].add(free)
            count += 1
    return moved, count


class _Tree:
    """Mean vectors of the nodes of a tree that its items' paths describe."""

    def __init__(self, codes: np.ndarray, vectors: np.ndarray, children: int):
        self._children = children
        self._means: dict[tuple[int, ...], np.ndarray] = {}
        for depth in range(1, codes.shape[1] + 1):
            paths, node = np.unique(codes[:, :depth], axis=0, return_inverse=True)
            sums = np.zeros((len(paths), vectors.shape[1]))
            np.add.at(sums, node.reshape(-1), vectors)
            means = sums / np.bincount(node.reshape(-1))[:, None]
            self._means.update(zip(map(tuple, paths.tolist()), means, strict=True))

    def distances(self, vectors: np.ndarray, paths: list[tuple[int, ...]]) -> np.ndarray:
        """Squared distances of ``vectors`` (n, d) to the nodes' means, (n, len(paths)); infinite to a node without."""
        unknown = np.full(vectors.shape[1], np.inf)
        means = np.stack([self._means.get(path, unknown) for path in paths])
        found: np.ndarray = np.square(vectors[:, None, :] - means[None]).sum(2)
        return found

    def nearest_free(
        self, vector: np.ndarray, path: tuple[int, ...], taken: set[tuple[int, ...]]
    ) -> tuple[int, ...] | None:
        """A leaf not ``taken`` under the deepest ancestor of ``path`` with one: the nearest node on each level."""
        for depth in range(len(path) - 1, -1, -1):
            node = path[:depth]
            if self._full(node, len(path), taken):
                continue
            while len(node) < len(path):
                below = [(*node, code) for code in range(self._children)]
                node = self._by_distance(vector, [one for one in below if not self._full(one, len(path), taken)])[0]
            return node
        return None

    def _full(self, node: tuple[int, ...], levels: int, taken: set[tuple[int, ...]]) -> bool:
        """Whether all leaves under ``node`` are taken."""
        leaves = self._children ** (levels - len(node))
        return len(taken) >= leaves and sum(leaf[: len(node)] == node for leaf in taken) >= leaves

    def _by_distance(self, vector: np.ndarray, paths: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        order = self.distances(vector[None], paths)[0].argsort(kind="stable")
        return [paths[number] for number in order]
