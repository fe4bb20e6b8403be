"""Random codes: what an index is worth when neither text nor behaviour is in it (LLM-BS, the `random` index)."""

import math

import numpy as np

from genrec_bench.datasets.errors import InputError


def random_codes(num_items: int, levels: int, codes: int, seed: int) -> np.ndarray:
    """A distinct code for each item, (N, L) int32: each level uniform, complete duplicates drawn again.

    Raises InputError where ``codes`` ** ``levels`` < N.
    """
    rng = np.random.default_rng(seed)
    space = check_space(num_items, levels, codes)
    if space <= 4 * num_items:  # drawing again would take long; a permutation has the same distribution
        numbers = rng.permutation(space)[:num_items]
        return np.stack(np.unravel_index(numbers, (codes,) * levels), 1).astype(np.int32)
    drawn = rng.integers(0, codes, (num_items, levels), dtype=np.int32)
    while True:
        _, first = np.unique(drawn, axis=0, return_index=True)
        repeated = np.setdiff1d(np.arange(num_items), first)
        if not len(repeated):
            return drawn
        drawn[repeated] = rng.integers(0, codes, (len(repeated), levels), dtype=np.int32)


def check_space(num_items: int, levels: int, codes: int) -> int:
    """The number of possible codes; InputError where there are more items."""
    space = codes**levels
    if space < num_items:
        fitting = math.ceil(num_items ** (1 / levels) - 1e-9)
        raise InputError(
            f"Item index: {levels} levels of {codes} codes name {space:,} items at most; the catalogue "
            f"has {num_items:,}: ask for {fitting} codes or more, or for more levels"
        )
    return space
