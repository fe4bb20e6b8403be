"""What a data set looks like in numbers."""

import numpy as np

from genrec_bench.datasets.interactions import InteractionData


def describe(data: InteractionData) -> dict[str, float]:
    """Counts, sequence lengths, density, share of items with text, and how uneven popularity is."""
    lengths = data.sequences.lengths
    popularity = np.bincount(data.sequences.items, minlength=data.num_items)
    return {
        "users": data.num_users,
        "items": data.num_items,
        "interactions": data.num_interactions,
        "average_length": float(lengths.mean()),
        "median_length": float(np.median(lengths)),
        "shortest": int(lengths.min()),
        "longest": int(lengths.max()),
        "density": data.num_interactions / (data.num_users * data.num_items),
        "text_coverage": float(with_text(data).mean()),
        "popularity_gini": gini(popularity),
    }


def with_text(data: InteractionData) -> np.ndarray:
    """(N,) bool: whether an item has a title or a description; category names alone do not tell items apart."""
    title, description = (data.items[name].str.strip() != "" for name in ("title", "description"))
    return (title | description).to_numpy(dtype=bool)


def gini(counts: np.ndarray) -> float:
    """Gini coefficient: 0 where all counts are equal, towards 1 where one has everything."""
    ordered = np.sort(counts).astype(np.float64)
    total, n = ordered.sum(), len(ordered)
    if not total:
        return 0.0
    return float(2 * (np.arange(1, n + 1) * ordered).sum() / (n * total) - (n + 1) / n)
