"""Codes of two sources, text and behaviour: EAGER-LLM's dual-source index (arXiv 2502.14735, section 3.2).

Half of an item's tokens are its path in a tree of clusters of its text vectors, half its path in one of its behaviour
vectors. The paper prints four tokens of 256 values, the order (text first) and the rule of the trees (split until
single), not how many levels each source has.

Deviation, where the paper is silent: levels are shared out evenly. Trees that end in single items (``leaf=singleton``,
the text's words) make the first source alone name the item, so that the second is read and learned but decides nothing;
``leaf=coarse`` ends both in leaves of about ``leaf_size`` items, and all tokens decide.
"""

import math
from typing import Any

import numpy as np

from genrec_bench.datasets.errors import InputError
from genrec_bench.methods.indexing.config import IndexConfig
from genrec_bench.methods.indexing.free_codes import move_to_free
from genrec_bench.methods.indexing.hierarchical import branching, hierarchical_codes, standardised
from genrec_bench.methods.indexing.index import ItemIndex
from genrec_bench.methods.indexing.random_codes import random_codes


def dual_index(
    num_items: int, text: np.ndarray | None, behaviour: np.ndarray | None, config: IndexConfig
) -> tuple[ItemIndex, dict[str, Any]]:
    """The index of ``config.mode`` over ``text`` (N, d) and ``behaviour`` (N, d_b), and facts for the report.

    Every mode has the same vocabulary, ``config.codes`` tokens on each of ``config.levels`` levels (which
    ``config.vocabulary`` may trim afterwards), and codes that are distinct. Raises InputError where a
    tree cannot hold the catalogue, naming the smallest that does.
    """
    levels, codes = config.levels, config.codes
    if config.mode == "random":
        return _named(random_codes(num_items, levels, codes, config.seed), "r" * levels, codes), {}
    if config.mode != "unit":
        vectors, letter = (text, "s") if config.mode == "semantic" else (behaviour, "b")
        assert vectors is not None  # `build_index` gathers what the mode asks for
        return _named(_tree(standardised(vectors), levels, config)[0], letter * levels, codes), {}
    assert text is not None
    assert behaviour is not None
    sources = {"s": standardised(text), "b": standardised(behaviour)}
    order = layout(config)
    if config.leaf == "singleton":
        parts = {letter: _tree(vectors, levels // 2, config)[0] for letter, vectors in sources.items()}
        moved = 0
    else:
        parts, moved = _coarse(sources["s"], sources["b"], config)
    columns = [parts[letter][:, order[:level].count(letter)] for level, letter in enumerate(order)]
    return _named(np.stack(columns, 1), order, codes), {"moved_to_free": moved}


def layout(config: IndexConfig) -> str:
    """Source of each level, ``s`` or ``b``: the paper's is ``ssbb``."""
    half = config.levels // 2
    orders = {"semantic_first": "s" * half + "b" * half, "alternating": "sb" * half,
              "behavior_first": "b" * half + "s" * half}  # fmt: skip
    return orders[config.layout]


def _tree(vectors: np.ndarray, depth: int, config: IndexConfig, leaf_size: int = 1) -> tuple[np.ndarray, int]:
    """Paths (N, depth) in a tree of clusters, and its children a node."""
    children = branching(len(vectors), depth, config.codes, leaf_size)
    return hierarchical_codes(vectors, depth, children, config.seed, singletons=leaf_size == 1), children


def _coarse(text: np.ndarray, behaviour: np.ndarray, config: IndexConfig) -> tuple[dict[str, np.ndarray], int]:
    """Paths in two trees with leaves of several items; items equal in both move in the behaviour tree."""
    half = config.levels // 2
    semantic, _ = _tree(text, half, config, config.leaf_size)
    path, children = _tree(behaviour, half, config, config.leaf_size)
    leaf = np.unique(semantic, axis=0, return_inverse=True)[1].reshape(-1)
    largest = int(np.bincount(leaf).max())
    fitting = math.ceil(largest ** (1 / half) - 1e-9)  # children that tell a whole leaf's items apart
    if fitting > config.codes:
        raise InputError(
            f"Item index: {largest} items share the {half} text tokens, and {half} behaviour tokens of {config.codes} "
            f"codes tell {config.codes**half} apart: ask for {fitting} codes or more, for more levels, or a smaller "
            "leaf_size"
        )
    children = max(children, fitting)  # numbers beyond the tree's own are free leaves
    path, moved = move_to_free(leaf, path, behaviour, children)
    return {"s": semantic, "b": path}, moved


def _named(codes: np.ndarray, letters: str, size: int) -> ItemIndex:
    """Tokens ``<s1_17>``: the source, the level within the source, the code. No two levels share one."""
    tokens = tuple(
        tuple(f"<{letter}{letters[: level + 1].count(letter)}_{code}>" for code in range(size))
        for level, letter in enumerate(letters)
    )
    return ItemIndex(codes, tokens)
