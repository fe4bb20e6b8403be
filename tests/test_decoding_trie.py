"""The trie against a dict of prefixes, its size and build time, and restrictions against sets."""

import time

import numpy as np
import pytest
import torch
from conftest import make_histories
from decoding_reference import random_index
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_bench.methods.decoding.restriction import restrict
from genrec_bench.methods.decoding.trie import END, ItemTrie
from genrec_bench.methods.indexing.index import ItemIndex, level_tokens

indices = st.builds(
    random_index,
    seed=st.integers(0, 10_000),
    items=st.integers(1, 40),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    variable=st.booleans(),
)


def paths(index: ItemIndex) -> list[tuple[int, ...]]:
    """Each item's code with END where it is short."""
    codes = [tuple(c for c in row if c >= 0) for row in index.codes.tolist()]
    return [code if len(code) == index.num_levels else (*code, END) for code in codes]


def walk(trie: ItemTrie, path: tuple[int, ...]) -> int:
    node = torch.zeros(1, dtype=torch.int64)
    for level, code in enumerate(path):
        node = trie.descend(level, node, torch.tensor([code]))
    return int(node)


@settings(max_examples=60)
@given(indices)
def test_children_are_the_prefixes_that_exist(index):
    trie = ItemTrie.from_index(index)
    following: dict[tuple[int, ...], set[int]] = {}
    for path in paths(index):
        for place, code in enumerate(path):
            following.setdefault(path[:place], set()).add(code)
    for prefix, expected in following.items():
        nodes = torch.tensor([walk(trie, prefix), -1])
        codes, children, real = trie.children(len(prefix), nodes)
        assert codes[0, real[0]].tolist() == sorted(expected)
        assert [walk(trie, (*prefix, code)) for code in sorted(expected)] == children[0, real[0]].tolist()
        assert not real[1].any()
    longest = max(following, key=len)
    assert walk(trie, (*longest, index.level_sizes[len(longest)])) == -1


@settings(max_examples=60)
@given(indices, st.randoms(use_true_random=False))
def test_leaves_hold_their_items_in_the_given_order(index, random):
    order = np.array([random.randint(0, 3) for _ in range(index.num_items)])
    trie = ItemTrie.from_index(index, order)
    assert trie.variable == index.variable
    assert trie.num_leaves == index.num_distinct
    assert np.array_equal(trie.leaf_of_item, index.groups)
    for item, path in enumerate(paths(index)):
        leaf = int(trie.leaf(len(path), torch.tensor(walk(trie, path))))
        assert leaf == index.groups[item]
        same = np.flatnonzero(index.groups == leaf).tolist()
        below = trie.items[trie.starts[-1][leaf] : trie.starts[-1][leaf + 1]].tolist()
        assert below == sorted(same, key=lambda i: (order[i], i))


def test_a_subset_keeps_the_item_numbers():
    index = random_index(1, 30, [4, 4, 4])
    chosen = np.array([17, 3, 20, 4])
    trie = ItemTrie.from_index(index, items=chosen)
    assert sorted(trie.items.tolist()) == sorted(chosen.tolist())
    assert (trie.leaf_of_item >= 0).nonzero()[0].tolist() == sorted(chosen.tolist())


def test_codes_beyond_one_machine_word():
    """Nine levels of 256 codes need more than 63 bits to sort."""
    codes = np.random.default_rng(0).integers(0, 256, (500, 9)).astype(np.int32)
    codes[1::2, :8] = codes[::2, :8]
    index = ItemIndex(codes, level_tokens([256] * 9))
    assert np.array_equal(ItemTrie.from_index(index).leaf_of_item, index.groups)


def test_a_million_items_build_quickly_and_stay_small():
    codes = np.random.default_rng(0).integers(0, 256, (1_000_000, 4)).astype(np.int32)
    index = ItemIndex(codes, level_tokens([256] * 4))
    started = time.perf_counter()
    trie = ItemTrie.from_index(index)
    assert time.perf_counter() - started < 5
    assert trie.nbytes < 100e6
    assert trie.nbytes == trie.to("cpu").nbytes


@settings(max_examples=60)
@given(indices, st.data())
def test_a_node_is_open_exactly_when_an_item_below_it_is(index, data):
    items = st.lists(st.integers(0, index.num_items - 1), max_size=2 * index.num_items)
    excluded = data.draw(st.lists(items, min_size=3, max_size=3))
    allowed = data.draw(st.none() | st.lists(items, min_size=3, max_size=3))
    trie = ItemTrie.from_index(index)
    restriction = restrict(trie, make_histories(excluded), None if allowed is None else make_histories(allowed))
    for level in range(index.num_levels):
        nodes = torch.arange(len(trie.codes[level])).expand(3, -1)
        _, children, real = trie.children(level, nodes)
        first, last = trie.rows[level][:-1].long().expand(3, -1), trie.rows[level][1:].long().expand(3, -1)
        found = restriction.allows(level + 1, first, last, trie.fan_out[level])
        found = real if found is None else found & real
        for row in range(3):
            left = set(range(index.num_items) if allowed is None else allowed[row]) - set(excluded[row])
            open_nodes = set(trie.host.node_of(level + 1, trie.host.position[sorted(left)]).tolist())
            assert set(children[row, found[row]].tolist()) == open_nodes


def test_nothing_to_restrict_is_no_restriction():
    assert restrict(ItemTrie.from_index(random_index(0, 5, [3, 3]))) is None


def test_an_empty_trie_is_refused():
    with pytest.raises(ValueError, match="at least one item"):
        ItemTrie.from_index(random_index(0, 5, [3, 3]), items=np.array([], dtype=np.int64))
