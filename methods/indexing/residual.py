"""Residual k-means: each level clusters what the levels before it leave over (the same greedy coding as RQ-VAE's)."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genrec_bench.methods.indexing.kmeans import kmeans, nearest


class Quantised(NamedTuple):
    """What a residual quantiser made of N vectors; the last level's parts let collisions be repaired."""

    codes: np.ndarray  # (N, L) int32
    residuals: Tensor  # (N, d) float32: what the last level has to code
    codebook: Tensor  # (K, d) float32: the last level's vectors
    reconstruction_error: float  # mean squared error of the input, relative to its variance


def residual_codes(vectors: np.ndarray, levels: int, codes: int, seed: int, iterations: int = 100) -> Quantised:
    """Code ``vectors`` (N, d) on ``levels`` levels of ``codes`` codes each; level sizes are at most N."""
    generator = torch.Generator().manual_seed(seed)
    residual = torch.from_numpy(np.array(vectors, dtype=np.float32))
    variance = float((residual - residual.mean(0)).square().mean())
    columns = []
    for _ in range(levels):
        codebook = kmeans(residual, min(codes, len(residual)), generator, iterations=iterations)
        before = residual
        columns.append(nearest(residual, codebook))
        residual = before - codebook[columns[-1]]
    error = float(residual.square().mean()) / variance if variance else 0.0
    return Quantised(torch.stack(columns, 1).int().numpy(), before, codebook, error)
