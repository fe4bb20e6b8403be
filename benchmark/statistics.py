"""Uncertainty and significance over users: bootstrap intervals, paired tests, corrections. Pure functions on arrays.

A per-user value of NaN means that the user does not count for that metric (an invalid answer for a "given valid"
ratio): means are over the other users. Users are paired between methods; values are averaged over seeds per user first,
and where a user counts under some seeds only, the share of those seeds is the user's weight in means.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, FiniteFloat

RESAMPLES = 1_000
PERMUTATIONS = 10_000
SIGNIFICANCE = 0.05
CHUNK_CELLS = 4_000_000  # numbers held at once while resampling, 32 MB
BLOCK_CELLS = 16_000_000  # of a table's values that are resampled together, 128 MB
DRAWN_ONE_BY_ONE = 50_000  # users; of more, how often each distinct row occurs is drawn


class Interval(BaseModel):
    """A mean over users with its 95% interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    mean: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat


def over_seeds(values: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """(..., U) mean over seeds of each user's value, NaN seeds left out; ``values`` holds one (..., U) array a seed."""
    stacked = np.asarray(values)
    counted = ~np.isnan(stacked)
    if counted.all():
        return stacked.mean(axis=0)
    total = np.where(counted, stacked, 0.0).sum(axis=0)
    return np.divide(total, counted.sum(axis=0), out=np.full(total.shape, np.nan), where=counted.any(axis=0))


def counted_share(values: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """(..., U) share of the seeds under which a user counts; ``values`` as in `over_seeds`."""
    return (~np.isnan(np.asarray(values))).mean(axis=0)


def bootstrap(
    values: Mapping[str, np.ndarray],
    weights: Mapping[str, np.ndarray] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """95% percentile intervals of the mean over users, all metrics on the same resamples.

    ``values`` maps a metric to its (U,) values, ``weights`` some of them to (U,) weights; without, users who count
    weigh the same. A metric that counts for no user is left out of the answer.
    """
    return bootstrap_each([(values, weights or {})], resamples, seed)[0]


def bootstrap_each(
    rows: Sequence[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[dict[str, Interval]]:
    """`bootstrap` of each row of a table: rows of equally many users see the same resamples, and share their cost."""
    blocks: dict[tuple[int, int], list[tuple[int, str]]] = defaultdict(list)
    for place, (values, _) in enumerate(rows):
        for name, column in values.items():
            if np.isfinite(column).any():
                users = len(column)
                together = 1 if users > DRAWN_ONE_BY_ONE else max(1, BLOCK_CELLS // (users * len(values)))
                blocks[users, place // together].append((place, name))
    found: list[dict[str, Interval]] = [{} for _ in rows]
    for block in blocks.values():
        columns = [(rows[place][0][name], rows[place][1].get(name)) for place, name in block]
        for (place, name), (mean, low, high) in zip(block, _intervals(columns, resamples, seed).tolist(), strict=True):
            found[place][name] = Interval(mean=mean, low=low, high=high)
    return found


def _intervals(columns: Sequence[tuple[np.ndarray, np.ndarray | None]], resamples: int, seed: int) -> np.ndarray:
    """(m, 3) means of m columns, each (U,) values and their weights, and the ends of their intervals."""
    totals, weighed, weights = [], [], []
    for place, (values, given) in enumerate(columns):
        weight = ~np.isnan(values) if given is None else given
        whole = (weight == 1).all()  # then it is U in every resample
        totals.append(values if whole else np.nan_to_num(values) * weight)
        if not whole:
            weighed.append(place)
            weights.append(weight)
    table = np.stack(totals + weights).astype(np.float64, copy=False)
    sums = np.hstack([table.sum(axis=1, keepdims=True), _resampled_sums(table, resamples, seed)])
    means, counts = sums[: len(columns)], sums[len(columns) :]
    share = np.divide(means[weighed], counts, out=np.full_like(counts, np.nan), where=counts > 0)
    means /= table.shape[1]
    means[weighed] = share
    low, high = np.percentile(means[:, 1:], [2.5, 97.5], axis=1)
    for row in np.flatnonzero(np.isnan(low)):  # resamples in which nobody counts
        low[row], high[row] = np.nanpercentile(means[row, 1:], [2.5, 97.5])
    return np.stack([means[:, 0], low, high], axis=1)


def _resampled_sums(table: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(m, resamples) sums over resamples of the columns of a table (m, n)."""
    users = table.shape[1]
    if users <= DRAWN_ONE_BY_ONE:
        counts = _drawn(users, resamples, seed)
    else:
        # Users with equal values are interchangeable: drawing how often each distinct column occurs is the same
        # experiment, and ranks have a few dozen distinct ones however many users there are.
        rng = np.random.default_rng(seed)
        table, sizes = np.unique(table, axis=1, return_counts=True)
        chunks = _chunks(resamples, table.shape[1])
        counts = [rng.multinomial(users, sizes / users, size=count) for count in chunks]
    return np.concatenate([table @ some.T.astype(np.float64) for some in counts], axis=1)


@lru_cache(maxsize=1)  # a data set's tables have the same users; 100 MB at most
def _drawn(users: int, resamples: int, seed: int) -> list[np.ndarray]:
    """(resamples, users) how often each user stands in each resample, uint16, in parts of some resamples."""
    rng, parts = np.random.default_rng(seed), []
    for count in _chunks(resamples, users):
        drawn = rng.integers(0, users, (count, users)) + users * np.arange(count)[:, None]
        parts.append(np.bincount(drawn.ravel(), minlength=count * users).astype(np.uint16).reshape(count, users))
    return parts


def _chunks(count: int, width: int) -> list[int]:
    """``count`` split so that a (chunk, width) array stays small."""
    size = max(1, CHUNK_CELLS // max(width, 1))
    return [min(size, count - start) for start in range(0, count, size)]


def differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a - b for the users who count in both, (n,) float64."""
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    return difference[~np.isnan(difference)]


def paired_t(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided p of the paired t-test over users."""
    return float(_p_of(differences(a, b)[None])[0])


def _paired_t_each(a: np.ndarray, others: Sequence[np.ndarray]) -> list[float]:
    """`paired_t` of ``a`` (U,) and each of the others, at once where all users count in all."""
    if not others:
        return []
    difference = a - np.stack(others)
    if np.isnan(difference).any():
        return [paired_t(a, other) for other in others]
    return _p_of(difference).tolist()


def _p_of(difference: np.ndarray) -> np.ndarray:
    """(R,) two-sided p of the t-test of each row of (R, n) differences."""
    from scipy import special  # scipy.stats takes half a second to import

    count = difference.shape[1]
    if count < 2:
        return np.ones(len(difference))
    error = difference.std(axis=1, ddof=1) / np.sqrt(count)
    with np.errstate(divide="ignore", invalid="ignore"):  # without spread: certain, or no difference at all
        p = 2.0 * special.stdtr(count - 1, -np.abs(difference.mean(axis=1) / error))
    return np.where(np.isnan(p), 1.0, p)


def sign_flip(a: np.ndarray, b: np.ndarray, permutations: int = PERMUTATIONS, seed: int = 0) -> float:
    """Two-sided p of the paired sign-flip permutation test, the observed assignment counted as one of them."""
    difference = differences(a, b)
    size = np.abs(difference[difference != 0.0])  # a zero stays zero whatever its sign
    if not len(size):
        return 1.0
    # Hits make equal sums common: sums within rounding of the observed one count as at least as extreme.
    threshold = abs(difference.sum()) - 1e-9 * size.sum()
    rng = np.random.default_rng(seed)
    extreme = 0
    for count in _chunks(permutations, len(size)):
        positive = np.unpackbits(rng.integers(0, 256, (count, -(-len(size) // 8)), dtype=np.uint8), axis=1)
        sums = 2.0 * (positive[:, : len(size)].astype(np.float64) @ size) - size.sum()
        extreme += int((np.abs(sums) >= threshold).sum())
    return (extreme + 1) / (permutations + 1)


def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """Exact two-sided p of McNemar's test for (U,) 0/1 values of one run each."""
    from scipy import special

    difference = differences(a, b)
    only_a, only_b = int((difference > 0).sum()), int((difference < 0).sum())
    return min(1.0, 2.0 * float(special.bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the given order."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()


def tied_with_best(
    values: Mapping[str, np.ndarray], best: str | None = None, significance: float = SIGNIFICANCE
) -> dict[str, bool]:
    """For each method, whether it cannot be told from the best one (which is True itself).

    ``values`` maps a method to its (U,) seed-averaged values, users aligned; ``best`` is by default the one with the
    highest mean. Paired t-tests against the best, Holm-corrected over the methods; tied where the adjusted p is at
    least ``significance``.
    """
    counting = {name: column for name, column in values.items() if not np.isnan(column).all()}
    if not counting:
        return dict.fromkeys(values, False)
    if best not in counting:
        best = max(sorted(counting), key=lambda name: float(np.nanmean(counting[name])))
    others = [name for name in counting if name != best]
    adjusted = holm(_paired_t_each(counting[best], [counting[name] for name in others]))
    tied = {best: True, **{name: p >= significance for name, p in zip(others, adjusted, strict=True)}}
    return {name: tied.get(name, False) for name in values}


class Friedman(NamedTuple):
    """Ranks over data sets, the test that all methods are alike, and the least difference of two average ranks."""

    average_ranks: tuple[float, ...]  # 1 is best; ties share the mean of their ranks
    statistic: float  # Iman and Davenport's F, infinite where all data sets agree
    p: float
    critical_difference: float


def friedman(values: np.ndarray) -> Friedman:
    """Friedman's test and Nemenyi's critical difference at 5%; ``values`` (N data sets, k methods), higher is better.

    Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets" (JMLR 2006), section 3.2.2.
    """
    from scipy import special

    datasets, methods = values.shape
    if datasets < 2 or methods < 2:
        raise ValueError("Friedman's test needs two data sets and two methods")
    ranks = pd.DataFrame(-values).rank(axis=1).mean().to_numpy()
    spread = float((ranks**2).sum()) - methods * (methods + 1) ** 2 / 4
    chi_squared = 12 * datasets / (methods * (methods + 1)) * spread
    rest = datasets * (methods - 1) - chi_squared
    statistic = (datasets - 1) * chi_squared / rest if rest > 1e-9 else float("inf")
    p = float(special.fdtrc(methods - 1, (methods - 1) * (datasets - 1), statistic))
    width = _largest_range(methods) / np.sqrt(2) * np.sqrt(methods * (methods + 1) / (6 * datasets))
    return Friedman(tuple(ranks.tolist()), statistic, p, float(width))


def _largest_range(count: int) -> float:
    """What the range of ``count`` standard normal numbers exceeds in 5% of cases: Nemenyi's studentized range."""
    from scipy import special

    smallest, step = np.linspace(-9, 9, 3601, retstep=True)
    density = count * step * np.exp(-(smallest**2) / 2) / np.sqrt(2 * np.pi)
    low, high = 0.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        within = density @ (special.ndtr(smallest + middle) - special.ndtr(smallest)) ** (count - 1)
        low, high = (middle, high) if within < 1 - SIGNIFICANCE else (low, middle)
    return middle
