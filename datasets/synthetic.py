"""A made-up data set whose next item is a known function of the history, for tests and for trying a method.

Two signals, each enough to beat popularity: every item has a few successors (behaviour: a transition graph), and every
category is followed by another category (meaning: the category stands in title, description and categories text).
"""

import numpy as np
import pandas as pd

from genrec_bench.datasets.events import item_table
from genrec_bench.datasets.interactions import Histories, InteractionData

FOLLOW_GRAPH = 0.6  # chance that the next item is a successor of the last one
FOLLOW_MEANING = 0.3  # chance that it is any item of the category that follows; the rest is drawn by popularity
SUCCESSOR_WEIGHTS = (0.7, 0.2, 0.1)
DRAWS = 8  # candidates per step; the first that the user has not had yet is taken

NOUNS = ("lamp", "kettle", "guitar", "saddle", "camera", "blanket", "compass", "novel", "lantern", "racket")
THEMES = ("reading", "cooking", "music", "riding", "travel", "sleep", "hiking", "stories", "camping", "sport")
COLOURS = ("amber", "blue", "coral", "dark", "emerald", "fawn", "golden", "hazel", "ivory", "jade", "lilac")


def generate(
    num_users: int = 400,
    num_items: int = 200,
    seed: int = 0,
    min_length: int = 6,
    max_length: int = 30,
    name: str = "synthetic",
) -> InteractionData:
    """``num_users`` sequences over ``num_items`` items, no item twice in one; the same seed gives the same data."""
    if num_items < 10 or num_users < 1 or not 3 <= min_length <= max_length:
        raise ValueError("needs num_items >= 10, num_users >= 1 and 3 <= min_length <= max_length")
    rng = np.random.default_rng(seed)
    max_length = min(max_length, num_items // 2)
    min_length = min(min_length, max_length)
    lengths = rng.integers(min_length, max_length + 1, size=num_users)
    category = np.arange(num_items) % min(len(NOUNS), num_items // 5)
    category = rng.permutation(category)  # item numbers must not give the category away
    table = _walk(rng, num_users, category, int(lengths.max()))
    taken = np.arange(table.shape[1])[None, :] < lengths[:, None]
    # A user starts on a random day of a year and comes back every one to three days.
    start = rng.integers(0, 365, size=(num_users, 1))
    days = start + np.cumsum(rng.integers(1, 4, size=table.shape), axis=1)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    sequences = Histories(np.arange(num_users, dtype=np.int64), offsets, table[taken].astype(np.int32))
    timestamps = (1_600_000_000 + days[taken] * 86_400).astype(np.int64)
    user_ids = np.array([f"user{u}" for u in range(num_users)], dtype=object)
    return InteractionData(name, user_ids, _items(category), sequences, timestamps)


def _walk(rng: np.random.Generator, num_users: int, category: np.ndarray, steps: int) -> np.ndarray:
    """(num_users, steps) items, all users moving at once."""
    num_items, users = len(category), np.arange(num_users)
    successors = np.argsort(rng.random((num_items, num_items)), axis=1)[:, : len(SUCCESSOR_WEIGHTS)]
    next_category = _one_cycle(rng, int(category.max()) + 1)
    # Mild popularity: the most popular item is drawn about ten times as often as the least popular one.
    popularity = np.linspace(10, 1, num_items)[rng.permutation(num_items)]
    cumulative = _cumulative(np.ones((1, num_items)) * popularity)[0]
    by_category = _cumulative(popularity * (category == np.arange(category.max() + 1)[:, None]))
    table = np.empty((num_users, steps), dtype=np.int64)
    seen = np.zeros((num_users, num_items), dtype=bool)
    table[:, 0] = np.searchsorted(cumulative, rng.random(num_users))
    for step in range(1, steps):
        last = table[:, step - 1]
        seen[users, last] = True
        kind = rng.random((num_users, DRAWS))
        branch = rng.choice(len(SUCCESSOR_WEIGHTS), p=SUCCESSOR_WEIGHTS, size=kind.shape)
        meaning = by_category[next_category[category[last]]]  # (num_users, num_items)
        in_category = (rng.random(kind.shape)[:, :, None] > meaning[:, None, :]).sum(axis=2)
        candidates = np.searchsorted(cumulative, rng.random(kind.shape))
        candidates = np.where(kind < FOLLOW_GRAPH + FOLLOW_MEANING, in_category, candidates)
        candidates = np.where(kind < FOLLOW_GRAPH, successors[last[:, None], branch], candidates)
        table[:, step] = _first_unseen(rng, candidates, seen)
    return table


def _one_cycle(rng: np.random.Generator, count: int) -> np.ndarray:
    """The category that follows each category: one circle through all, so that none follows itself."""
    circle = rng.permutation(count)
    following = np.empty(count, dtype=np.int64)
    following[circle] = np.roll(circle, -1)
    return following


def _cumulative(weights: np.ndarray) -> np.ndarray:
    total = np.cumsum(weights, axis=1)
    return total / total[:, -1:]


def _first_unseen(rng: np.random.Generator, candidates: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Of each row the first candidate the user has not had; any such item where all candidates were."""
    fresh = ~seen[np.arange(len(seen))[:, None], candidates]
    chosen = candidates[np.arange(len(seen)), fresh.argmax(axis=1)]
    stuck = ~fresh.any(axis=1)
    chosen[stuck] = np.where(seen[stuck], -1.0, rng.random((int(stuck.sum()), seen.shape[1]))).argmax(axis=1)
    return chosen


def _items(category: np.ndarray) -> pd.DataFrame:
    nouns = [NOUNS[c] for c in category]
    themes = [THEMES[c] for c in category]
    numbers = range(len(category))
    titles = [f"{COLOURS[i % len(COLOURS)]} {noun} {i}" for i, noun in zip(numbers, nouns, strict=True)]
    descriptions = [f"A {noun} for {theme}." for noun, theme in zip(nouns, themes, strict=True)]
    categories = [f"{theme}|{noun}" for noun, theme in zip(nouns, themes, strict=True)]
    return item_table([f"item{i}" for i in numbers], titles, descriptions, categories)
