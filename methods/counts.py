"""Saving and loading of methods whose whole model is item counts and an item-item matrix."""

from pathlib import Path

import numpy as np
from scipy import sparse


def save_counts(folder: Path, popularity: np.ndarray, matrix: sparse.csr_array) -> None:
    """Write item counts (N,) and an item-item matrix (N, N)."""
    np.save(folder / "popularity.npy", popularity, allow_pickle=False)
    sparse.save_npz(folder / "matrix.npz", matrix)


def load_counts(folder: Path) -> tuple[np.ndarray, sparse.csr_array]:
    """What `save_counts` wrote."""
    popularity = np.load(folder / "popularity.npy", allow_pickle=False)
    return popularity, sparse.csr_array(sparse.load_npz(folder / "matrix.npz"))


def count_numbers(popularity: np.ndarray, matrix: sparse.csr_array) -> tuple[int, int]:
    """Stored numbers, as parameters: all of them are learned."""
    total = len(popularity) + matrix.nnz
    return total, total
