"""Saving and loading of methods whose whole model is a few count arrays."""

from pathlib import Path

import numpy as np
from scipy import sparse


def save_counts(folder: Path, popularity: np.ndarray, matrix: sparse.csr_array | None = None) -> None:
    """Write item counts (N,) and, where there is one, an item-item matrix (N, N)."""
    np.save(folder / "popularity.npy", popularity, allow_pickle=False)
    if matrix is not None:
        sparse.save_npz(folder / "matrix.npz", matrix)


def load_counts(folder: Path) -> tuple[np.ndarray, sparse.csr_array | None]:
    """What `save_counts` wrote."""
    matrix = folder / "matrix.npz"
    popularity = np.load(folder / "popularity.npy", allow_pickle=False)
    return popularity, sparse.csr_array(sparse.load_npz(matrix)) if matrix.exists() else None


def count_numbers(popularity: np.ndarray, matrix: sparse.csr_array | None = None) -> tuple[int, int]:
    """Stored numbers, as parameters: all of them are learned."""
    total = len(popularity) + (matrix.nnz if matrix is not None else 0)
    return total, total
