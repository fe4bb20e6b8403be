"""What an index is like before any model is trained on it, and the thresholds that stop a run on a poor one."""

from typing import Any

import numpy as np

from genrec_bench.methods.indexing.config import IndexConfig
from genrec_bench.methods.indexing.index import ItemIndex

NEIGHBOURS = 10
PROBE_WORK = 1_500_000_000  # multiplications that the search for neighbours may take: under a second
PROBE_BLOCK = 64  # of them at a time
PROBE_ITEMS = (50, 2000)  # items whose neighbours are looked up, at least and at most


class PoorIndex(ValueError):
    """The index is below the config's thresholds: training on it would waste the time."""


def quality_report(index: ItemIndex, vectors: np.ndarray | None = None, seed: int = 0) -> dict[str, Any]:
    """Numbers and lists per level, ready for JSON.

    ``collision_rate`` is 1 - distinct codes / items. Per level: codes ``used``, their share of the level's ``size``,
    ``perplexity`` (2 to the entropy of the codes' use; as large as ``used`` when all are used alike). Per depth:
    ``prefix_bits``, the entropy of the prefixes (log2 of the items where each has its own), and ``fan_out``, the
    mean number of continuations. With source ``vectors`` (N, d) also `neighbour_agreement`.
    """
    codes, items = index.codes, index.num_items
    sizes = np.bincount(index.groups)
    columns = [column[column >= 0] for column in codes.T]
    use = [np.unique(column, return_counts=True)[1] for column in columns]
    prefixes = _prefix_groups(codes)
    distinct = [int(groups.max()) + 1 for groups in prefixes]
    report = {
        "items": items,
        "distinct": index.num_distinct,
        "collision_rate": 1 - index.num_distinct / items,
        "items_in_collisions": int(sizes[sizes > 1].sum()),
        "mean_length": float(index.lengths.mean()),
        "size": list(index.level_sizes),
        "used": [len(counts) for counts in use],
        "use": [len(counts) / size for counts, size in zip(use, index.level_sizes, strict=True)],
        "perplexity": [float(2 ** _bits(counts)) for counts in use],
        "prefix_bits": [_bits(np.bincount(groups)) for groups in prefixes],
        "fan_out": [after / before for before, after in zip([1, *distinct], distinct, strict=False)],
    }
    return report if vectors is None or items < 3 else report | neighbour_agreement(prefixes, vectors, seed)


def _prefix_groups(codes: np.ndarray) -> list[np.ndarray]:
    """Number of each item's prefix of 1, 2, .. L codes among the distinct ones."""
    groups: list[np.ndarray] = []
    before = np.zeros(len(codes), dtype=np.int64)
    for column in codes.T:
        paired = before * (int(column.max()) + 2) + column  # past a code's end: -1, a prefix like any other
        before = np.unique(paired, return_inverse=True)[1].reshape(-1)
        groups.append(before)
    return groups


def _bits(counts: np.ndarray) -> float:
    share = counts[counts > 0] / counts.sum()
    return max(float(-(share * np.log2(share)).sum()), 0.0)


def neighbour_agreement(prefixes: list[np.ndarray], vectors: np.ndarray, seed: int = 0) -> dict[str, float]:
    """How far codes follow the vectors (N, d): what each item's 10 nearest items (cosine) share with it.

    ``neighbours_first_token``: the share of them with its first token; ``neighbours_common_prefix``: the mean length of
    the common prefix. ``random_...``: the same of two random items. Large catalogues are sampled.
    """
    items, dim = vectors.shape
    rng = np.random.default_rng(seed)
    probes = min(max(PROBE_WORK // (items * dim), PROBE_ITEMS[0]), PROBE_ITEMS[1], items)
    chosen = np.sort(rng.choice(items, probes, replace=False))
    near = _nearest(vectors, chosen, min(NEIGHBOURS, items - 1))
    same = [float((groups[near] == groups[chosen, None]).mean()) for groups in prefixes]
    by_chance = [_same_by_chance(np.bincount(groups)) for groups in prefixes]
    return {
        "neighbours_first_token": same[0],
        "random_first_token": by_chance[0],
        "neighbours_common_prefix": sum(same),
        "random_common_prefix": sum(by_chance),
    }


def _nearest(vectors: np.ndarray, chosen: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` items of the largest cosine with each of the ``chosen`` ones, itself left out, (P, count)."""
    length = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    length[length == 0] = 1.0
    parts = []
    for start in range(0, len(chosen), PROBE_BLOCK):
        rows = chosen[start : start + PROBE_BLOCK]
        similarity = vectors[rows] @ vectors.T / length
        similarity[np.arange(len(rows)), rows] = -np.inf
        parts.append(np.argpartition(similarity, -count, axis=1)[:, -count:])
    return np.concatenate(parts)


def _same_by_chance(counts: np.ndarray) -> float:
    """Chance that two different items are in the same group."""
    items = int(counts.sum())
    return float((counts * (counts - 1.0)).sum() / (items * (items - 1.0)))


def refuse_poor(report: dict[str, Any], config: IndexConfig) -> None:
    """PoorIndex where a report is below the thresholds of ``config``."""
    if report["collision_rate"] > config.max_collision_rate:
        raise PoorIndex(
            f"The {config.builder} index has {report['distinct']:,} codes for {report['items']:,} items: a collision "
            f"rate of {report['collision_rate']:.1%}, above max_collision_rate={config.max_collision_rate:.1%}"
        )
    if config.builder == "collaborative":  # its tokens are for all levels: a first level has `clusters` of them
        return
    could = min(report["size"][0], report["items"])
    if report["used"][0] < config.min_first_level_use * could:
        raise PoorIndex(
            f"The {config.builder} index uses {report['used'][0]} of {could} codes on its first level: the codebook "
            f"has collapsed (min_first_level_use={config.min_first_level_use:.1%})"
        )
