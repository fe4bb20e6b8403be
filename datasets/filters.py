"""Filters on events: pure, deterministic, vectorised; a card applies them in the order it lists them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from genrec_bench.datasets.errors import InputError, unknown
from genrec_bench.datasets.events import Events


def k_core(events: Events, users: int = 5, items: int = 5) -> Events:
    """Drop users and items with too few interactions, again and again until none is left to drop."""
    while True:
        per_user = np.bincount(events.user, minlength=len(events.user_ids))
        per_item = np.bincount(events.item, minlength=len(events.items))
        keep = (per_user[events.user] >= users) & (per_item[events.item] >= items)
        if keep.all():
            return events
        events = events.keep(keep)


def first_of_pair(events: Events) -> Events:
    """Only the earliest of several interactions of one user with one item."""
    pair = events.user * len(events.items) + events.item
    _, first = np.unique(pair, return_index=True)
    keep = np.zeros(len(events), dtype=bool)
    keep[first] = True
    return events.keep(keep)


def minimum_length(events: Events, length: int) -> Events:
    """Only users with at least ``length`` interactions."""
    return events.keep(np.bincount(events.user, minlength=len(events.user_ids))[events.user] >= length)


def minimum_rating(events: Events, rating: float) -> Events:
    """Only interactions rated at least ``rating``; InputError where the source has no ratings."""
    if events.rating is None:
        raise InputError("Filter 'minimum_rating' needs ratings, and this source has none")
    return events.keep(events.rating >= rating)


def drop_repeats(events: Events, only_last: bool = False) -> Events:
    """Of a run of the same item in a row only the first; with ``only_last`` only where the run ends the sequence."""
    same_user = events.user[1:] == events.user[:-1]
    repeat = np.concatenate([[False], same_user & (events.item[1:] == events.item[:-1])])[: len(events)]
    if only_last and len(events):
        ends = np.flatnonzero(np.concatenate([~same_user, [True]]))
        # An event is in the closing run of its user if no later event of that user starts a new run.
        last_start = np.maximum.accumulate(np.where(repeat, 0, np.arange(len(events))))[ends]
        lengths = np.diff(np.concatenate([[-1], ends]))
        repeat &= np.arange(len(events)) > np.repeat(last_start, lengths)
    return events.keep(~repeat)


FILTERS: dict[str, Callable[..., Events]] = {
    "k_core": k_core,
    "first_of_pair": first_of_pair,
    "minimum_length": minimum_length,
    "minimum_rating": minimum_rating,
    "drop_repeats": drop_repeats,
}


def apply(events: Events, steps: Sequence[Mapping[str, Mapping[str, Any]]]) -> Events:
    """Apply ``[{name: options}, ...]`` in order; InputError for an unknown filter or option."""
    for step in steps:
        for name, options in step.items():
            if name not in FILTERS:
                raise unknown("filter", name, FILTERS)
            try:
                events = FILTERS[name](events, **options)
            except TypeError as error:
                raise InputError(f"Filter '{name}': {error}") from error
    return events
