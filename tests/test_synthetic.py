"""The synthetic set has the structure it promises."""

import time

import numpy as np
import pytest

from genrec_bench.datasets.interactions import InteractionData
from genrec_bench.datasets.synthetic import generate


def hits_at_10(data: InteractionData) -> tuple[float, float, float]:
    """Share of last items among the best ten by popularity, by last item, by category of the last item."""
    train, num_items = data.sequences.without_last(1), data.num_items
    popularity = np.bincount(train.items, minlength=num_items)
    category = data.items["categories"].factorize()[0]
    first, then = np.zeros((num_items, num_items)), np.zeros((category.max() + 1, category.max() + 1))
    for b in range(len(train)):
        row = train.row(b)
        np.add.at(first, (row[:-1], row[1:]), 1)
        np.add.at(then, (category[row[:-1]], category[row[1:]]), 1)
    hits = np.zeros(3)
    for b in range(len(train)):
        row, target = train.row(b), data.sequences.row(b)[-1]
        tie = popularity / popularity.sum()
        scores = (tie, first[row[-1]] + tie, then[category[row[-1]]][category] + tie)
        for k, score in enumerate(scores):
            score = score.copy()
            score[row] = -1
            hits[k] += target in np.argsort(-score)[:10]
    popular, markov, meaning = hits / len(train)
    return popular, markov, meaning


def test_behaviour_and_meaning_beat_popularity() -> None:
    popular, markov, meaning = hits_at_10(generate())
    assert markov > 3 * popular
    assert meaning > 1.5 * popular


def test_shape_and_speed() -> None:
    generate()  # imports
    start = time.perf_counter()
    data = generate()
    assert time.perf_counter() - start < 1.0  # 0.04 s here; a busy machine must not fail it
    assert (data.num_users, data.num_items) == (400, 200)
    assert data.sequences.lengths.min() >= 6
    assert data.items["title"].is_unique
    for b in range(data.num_users):
        assert len(set(data.sequences.row(b))) == len(data.sequences.row(b))
    assert data.timestamps is not None
    ends = data.sequences.offsets[1:-1]
    assert (np.delete(np.diff(data.timestamps), ends - 1) > 0).all()


def test_seed_decides_everything() -> None:
    assert generate(seed=3).sha256 == generate(seed=3).sha256
    assert generate(seed=3).sha256 != generate(seed=4).sha256


@pytest.mark.parametrize(("users", "items"), [(1, 10), (8, 12), (30, 500)])
def test_tiny_sizes(users: int, items: int) -> None:
    data = generate(users, items)
    assert (data.num_users, data.num_items) == (users, items)
    assert data.sequences.lengths.min() >= 3


def test_impossible_sizes() -> None:
    with pytest.raises(ValueError, match="num_items >= 10"):
        generate(5, 3)
