"""How well a model that writes item codes knows what they mean: titles written from codes, against the real ones."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from genrec_bench.methods.base import Method

ITEMS = 1000  # of a catalogue, a fixed sample


def title_scores(method: Method, items: pd.DataFrame) -> dict[str, float]:
    """``exact_match`` and ``token_f1`` of the titles that ``method`` writes for items of the table that have one.

    Words are compared without case and punctuation. Empty where the method writes no titles, or no item has one.
    """
    titled = np.flatnonzero(items["title"].to_numpy(dtype=str) != "")
    if type(method).write_titles is Method.write_titles or not len(titled):
        return {}
    asked = np.sort(np.random.default_rng(0).permutation(titled)[:ITEMS])
    written = [words(text) for text in method.write_titles(asked)]
    real = [words(text) for text in items["title"].iloc[asked]]
    exact = [one == other for one, other in zip(written, real, strict=True)]
    overlap = [token_f1(one, other) for one, other in zip(written, real, strict=True)]
    return {"items": float(len(asked)), "exact_match": float(np.mean(exact)), "token_f1": float(np.mean(overlap))}


def words(text: str) -> list[str]:
    """Lower-case words and numbers; a number's digits apart, as some vocabularies write them."""
    return re.findall(r"[^\W\d]+|\d", text.casefold())


def token_f1(written: Sequence[str], real: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over words, each as often as it comes (SQuAD's F1)."""
    shared = sum((Counter(written) & Counter(real)).values())
    return 2 * shared / (len(written) + len(real)) if shared else 0.0
