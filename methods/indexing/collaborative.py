"""P5-CID: items that the same users touch share leading tokens (Hua et al., SIGIR-AP 2023, arXiv 2305.06569).

Spectral clustering of the co-occurrence graph into M parts; a part of more than t items is split again.

Deviation: the graph stays sparse, with a rank-one term in place of 1e-6 on every pair, which keeps it connected.
Deviation: more than t items unseen in training get two tokens, the first from numbers that no cluster of the first
level has; the released code runs out of tokens.
"""

from collections import deque

import numpy as np
from scipy import linalg, sparse
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.interactions import Histories
from genrec_bench.methods.indexing.files import shared_tokens
from genrec_bench.methods.indexing.index import ItemIndex

EVERYWHERE = 1e-6  # affinity of any two items
DENSE = 1500  # a smaller graph's eigenvectors are found directly


def collaborative_index(sequences: Histories, num_items: int, clusters: int, limit: int, seed: int) -> ItemIndex:
    """Codes of 1 to some tokens <CI k>, k < ``limit``, which mean the same on every level.

    Every split appends a token from a running counter modulo ``limit``, whoever the parent is; a cluster of at most
    ``limit`` items numbers them in order. Items that training never saw have a last token only.
    """
    if clusters > limit:
        raise InputError(f"clusters={clusters} exceed the {limit} tokens: siblings would share them")
    graph = co_occurrence(sequences, num_items)
    seen = np.flatnonzero(np.bincount(sequences.items, minlength=num_items) > 0)
    paths: list[list[int]] = [[] for _ in range(num_items)]
    waiting: deque[np.ndarray] = deque([seen] if len(seen) else [])
    counter = first_level = 0
    while waiting:
        cluster = waiting.popleft()
        if (len(cluster) <= limit and len(cluster) < len(seen)) or len(seen) <= clusters:
            for position, item in enumerate(cluster):
                paths[item].append(position)
            continue
        parts = _split(graph, cluster, clusters, limit, seed)
        for part in parts:
            for item in part:
                paths[item].append(counter % limit)
            counter += 1
        first_level = first_level or len(parts)
        waiting.extend(parts)
    alone = 0 if first_level else len(seen)  # without a split, seen items have a single token as well
    _name_unseen(paths, np.setdiff1d(np.arange(num_items), seen), first_level, alone, limit)
    codes = np.full((num_items, max(map(len, paths))), -1, dtype=np.int32)
    for item, path in enumerate(paths):
        codes[item, : len(path)] = path
    index = ItemIndex(codes, (shared_tokens(limit),) * codes.shape[1])
    if index.num_distinct < num_items:  # siblings have different tokens, so this would be a fault of ours
        raise RuntimeError(f"collaborative index: {num_items - index.num_distinct} items share a code")
    return index


def _name_unseen(paths: list[list[int]], unseen: np.ndarray, first_level: int, alone: int, limit: int) -> None:
    if alone + len(unseen) <= limit:
        for position, item in enumerate(unseen):
            paths[item].append(alone + position)
        return
    if len(unseen) > (limit - first_level) * limit:
        raise InputError(
            f"collaborative index: {len(unseen):,} items without training interactions; "
            f"cluster_limit={limit} has room for {(limit - first_level) * limit:,}"
        )
    for position, item in enumerate(unseen):
        paths[item] += [first_level + position // limit, position % limit]


def co_occurrence(sequences: Histories, num_items: int) -> sparse.csr_array:
    """Number of sequences that hold both items, (N, N) float64, zero diagonal."""
    rows = np.repeat(np.arange(len(sequences)), sequences.lengths)
    held = sparse.csr_array((np.ones(len(rows)), (rows, sequences.items)), shape=(len(sequences), num_items))
    held.data[:] = 1.0  # an item twice in a sequence counts once
    together = sparse.csr_array(held.T @ held)
    together.setdiag(0.0)
    together.eliminate_zeros()
    return together


def _split(graph: sparse.csr_array, cluster: np.ndarray, clusters: int, limit: int, seed: int) -> list[np.ndarray]:
    """``cluster`` in at most ``clusters`` parts, by their numbers; cut in order where the graph gives no reason to."""
    parts: list[np.ndarray] = []
    if len(cluster) > clusters:
        labels = spectral_clusters(sparse.csr_array(graph[cluster][:, cluster]), clusters, seed)
        parts = [cluster[labels == label] for label in range(clusters)]
        parts = [part for part in parts if len(part)]
    if len(parts) < 2:
        parts = [part for part in np.array_split(cluster, clusters) if len(part)]
    return parts


def spectral_clusters(affinity: sparse.csr_array, clusters: int, seed: int) -> np.ndarray:
    """Cluster of each node, (n,) int64: leading eigenvectors of the normalised graph, labels by pivoted QR.

    As scikit-learn's SpectralClustering(assign_labels="cluster_qr") does on a precomputed affinity (Damle, Minden and
    Ying 2019), but with the constant `EVERYWHERE` added to each pair without filling the matrix.
    """
    size = affinity.shape[0]
    degree = np.asarray(affinity.sum(1)).ravel() + EVERYWHERE * size
    root = 1.0 / np.sqrt(degree)
    if size <= DENSE:
        full = root[:, None] * (affinity.toarray() + EVERYWHERE) * root
        _, vectors = linalg.eigh(full, subset_by_index=[size - clusters, size - 1])
    else:
        vectors = _leading(affinity, root, clusters, seed)
    embedded = vectors * root[:, None]  # scikit-learn's spectral embedding
    # pivoted QR picks one typical node per cluster; the polar factor turns the axes towards them
    _, pivots = linalg.qr(embedded.T, mode="r", pivoting=True)
    left, _, right = linalg.svd(embedded[pivots[: vectors.shape[1]]].T)
    labels: np.ndarray = np.abs(embedded @ (left @ right)).argmax(1)
    return labels


def _leading(affinity: sparse.csr_array, root: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Eigenvectors of the ``count`` largest eigenvalues of the normalised graph, (n, <= count)."""
    size = len(root)
    scaled = sparse.csr_array(sparse.diags_array(root) @ affinity @ sparse.diags_array(root))

    def product(vector: np.ndarray) -> np.ndarray:
        column = np.asarray(vector).ravel()
        return np.asarray(scaled @ column + EVERYWHERE * root * (root @ column))

    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    start = np.random.default_rng(seed).normal(size=size)
    try:
        vectors = eigsh(operator, k=count, which="LA", v0=start, ncv=min(4 * count, size - 1), tol=1e-6)[1]
    except ArpackNoConvergence as unfinished:  # many equal eigenvalues: those found still part the graph
        return np.asarray(unfinished.eigenvectors)
    return np.asarray(vectors)
