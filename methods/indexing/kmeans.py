"""k-means in float32, of one large set of points or of many small ones at a time.

Deviation: k-means++ and up to 100 of Lloyd's rounds on all points would take hours on a large catalogue. Centroids are
learnt from a sample, restarts are compared on a smaller one after `TRIAL_ROUNDS` rounds, k-means++ sees a smaller one
still, and rounds stop when the sum of squared distances falls by less than `TOLERANCE`. Sets of up to 16,384 points are
used whole. Results depend on the seed alone (and, in last digits, on the number of threads).
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

LEARN, TRY, SEED = (64, 16_384), (16, 4096), (16, 1024)  # sample sizes: points a centroid, but at least as many
TRIAL_ROUNDS = 5
TOLERANCE = 1e-4
BLOCK = 16_384  # points whose distances are held at a time


def kmeans(
    points: Tensor, clusters: int, generator: torch.Generator, restarts: int = 1, iterations: int = 100
) -> Tensor:
    """Centroids (clusters, d) of ``points`` (n, d); with more clusters than points, the surplus repeats points."""
    learning = _sample(points, sample_size(LEARN, clusters), generator)
    trying = _sample(learning, sample_size(TRY, clusters), generator) if restarts > 1 else learning
    seeding = _sample(trying, sample_size(SEED, clusters), generator)
    apart = squared_distances(seeding, seeding)[None]
    trials = []
    for _ in range(restarts):
        seeds = seeding[plus_plus(apart, None, clusters, generator)]  # (1, clusters, d)
        trials.append(
            lloyd(trying[None], None, seeds, min(TRIAL_ROUNDS, iterations)) if restarts > 1 else (seeds, apart)
        )
    centroids, _ = min(trials, key=lambda trial: float(trial[1])) if restarts > 1 else trials[0]
    centroids, _ = lloyd(learning[None], None, centroids, iterations)
    return centroids[0]


def sample_size(rule: tuple[int, int], clusters: int) -> int:
    """Points that a step of ``rule`` (`LEARN`, `TRY`, `SEED`) looks at."""
    return max(rule[0] * clusters, rule[1])


def _sample(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    if len(points) <= count:
        return points
    return points[torch.randperm(len(points), generator=generator)[:count].sort().values]


def plus_plus(apart: Tensor, valid: Tensor | None, clusters: int, generator: torch.Generator) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii 2007) on B sets at a time: the points drawn as seeds, (B, clusters) int64.

    ``apart`` (B, m, m): squared distances, all at once, since a row at a time costs a pass over the points each;
    ``valid`` (B, m) bool says which rows are points, None: all.
    """
    sets, size, _ = apart.shape
    each = torch.arange(sets)
    any_point = torch.ones(sets, size) if valid is None else valid.float()
    chances, nearest = any_point, torch.full((sets, size), float("inf"))
    seeds = []
    for _ in range(clusters):
        drawn = torch.multinomial(chances, 1, generator=generator)[:, 0]
        seeds.append(drawn)
        nearest = torch.minimum(nearest, apart[each, drawn])
        nearest[each, drawn] = 0  # rounding must not let a point be drawn again
        chances = nearest * any_point
        spread = chances.sum(1, keepdim=True) > 0
        chances = torch.where(spread, chances, any_point)  # fewer distinct points than clusters: any of them
    return torch.stack(seeds, 1)


def lloyd(points: Tensor, valid: Tensor | None, centroids: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Lloyd's rounds for B sets at a time: centroids (B, k, d) and the sums of squared distances (B,).

    An empty cluster takes the point that is farthest from its own centroid.
    """
    sets, size, dim = points.shape
    clusters = centroids.shape[1]
    norms = points.square().sum(2)
    flat = points.reshape(sets * size, dim)
    offset = torch.arange(sets)[:, None] * clusters
    before = torch.full((sets,), float("inf"))
    cost = before
    for _ in range(max(iterations, 0)):
        labels, distance = _nearest(points, norms, centroids)
        if valid is not None:
            distance = distance * valid
        cost = distance.sum(1)
        if bool((before - cost <= TOLERANCE * cost).all()):
            break
        before = cost
        numbers = labels + offset
        if valid is not None:
            numbers = numbers.masked_fill(~valid, sets * clusters)  # a bag that is cut off again
        centroids, counts = _means(flat, numbers.reshape(-1), sets * clusters)
        centroids, counts = centroids.view(sets, clusters, dim), counts.view(sets, clusters)
        _fill_empty(centroids, counts, points, distance)
    return centroids, cost


def _nearest(points: Tensor, norms: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest centroid and squared distance of each point, (B, m) each."""
    lengths = centroids.square().sum(2)[:, None, :]  # (B, 1, k)
    parts = [
        torch.baddbmm(lengths, points[:, start : start + BLOCK], centroids.transpose(1, 2), alpha=-2).min(2)
        for start in range(0, points.shape[1], BLOCK)
    ]
    labels = torch.cat([part.indices for part in parts], 1)
    return labels, (torch.cat([part.values for part in parts], 1) + norms).clamp_min(0)


def _means(points: Tensor, labels: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean of each group's points (groups, d), zero where it has none, and counts; labels >= groups are left out."""
    counts = torch.bincount(labels, minlength=groups + 1)
    order = labels.argsort(stable=True)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)[:-1]])
    # a bag is a sum of rows in a fixed order: as exact as index_add_ and twice as fast
    sums = functional.embedding_bag(order, points, starts, mode="sum")[:groups]
    return sums / counts[:groups, None].clamp_min(1), counts[:groups]


def _fill_empty(centroids: Tensor, counts: Tensor, points: Tensor, distance: Tensor) -> None:
    for row in torch.nonzero((counts == 0).any(1))[:, 0].tolist():
        empty = torch.nonzero(counts[row] == 0)[:, 0]
        far = distance[row].topk(min(len(empty), distance.shape[1])).indices
        centroids[row, empty[: len(far)]] = points[row, far]


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """Number of the nearest centroid of each of ``points`` (n, d), (n,) int64."""
    labels: Tensor = _nearest(points[None], points.square().sum(1)[None], centroids[None])[0][0]
    return labels


def squared_distances(points: Tensor, centroids: Tensor) -> Tensor:
    """(n, k) from (n, d) and (k, d)."""
    products = torch.addmm(centroids.square().sum(1)[None], points, centroids.T, alpha=-2)
    return (products + points.square().sum(1, keepdim=True)).clamp_min(0)


def assign_with_room(distances: np.ndarray, room: int) -> np.ndarray:
    """Cluster of each item where no cluster takes more than ``room``, (n,) int64; ``distances`` (n, k), squared.

    Items choose one after the other, each the nearest cluster with room, those that would lose most by their second
    choice first; ties by row. (In the opposite order, a depth-4 tree of Amazon Beauty's texts keeps 75 instead of 85
    percent of nearest neighbours under one first token.)
    """
    labels: np.ndarray = distances.argmin(1)
    size = np.bincount(labels, minlength=distances.shape[1])
    if size.max() <= room:
        return labels
    best_two = np.sqrt(np.partition(distances, 1, axis=1)[:, :2])
    order = np.argsort(-(best_two[:, 1] - best_two[:, 0]), kind="stable")
    left = np.full(distances.shape[1], room)
    for row in order.tolist():
        choice = labels[row]
        if not left[choice]:
            labels[row] = choice = int(np.where(left > 0, distances[row], np.inf).argmin())
        left[choice] -= 1
    return labels
