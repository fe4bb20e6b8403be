"""Shared codes: the counter level, Sinkhorn's repair, moves to free codes; and the quality report by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_bench.datasets.errors import InputError
from genrec_bench.methods.indexing.collisions import colliding, separate, sinkhorn_repair, with_counter
from genrec_bench.methods.indexing.config import IndexConfig
from genrec_bench.methods.indexing.free_codes import move_to_free
from genrec_bench.methods.indexing.index import ItemIndex, level_tokens, per_prefix, used_only
from genrec_bench.methods.indexing.quality import PoorIndex, quality_report, refuse_poor
from genrec_bench.methods.indexing.residual import Quantised
from genrec_bench.methods.indexing.sinkhorn import centred, uniform_plan


def index_of(codes, sizes):
    return ItemIndex(np.array(codes), level_tokens(sizes))


def test_counter_level_counts_by_item():
    index = with_counter(index_of([[1, 0], [0, 0], [1, 0], [0, 1], [1, 0]], (2, 2)))
    assert index.codes.tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 1], [0, 1, 0], [1, 0, 2]]
    assert index.level_sizes == (2, 2, 3)
    assert index.strings(4) == ["<a_1>", "<b_0>", "<c_2>"]
    assert with_counter(index_of([[0], [1]], (2,))).level_sizes == (2, 1)


def test_counter_level_needs_one_length():
    with pytest.raises(InputError, match="one length"):
        with_counter(ItemIndex(np.array([[0, -1], [0, 1]]), (("<CI 0>", "<CI 1>"),) * 2))


def test_used_only_keeps_names():
    index = used_only(index_of([[7, 0], [3, 2]], (9, 3)))
    assert index.tokens == (("<a_3>", "<a_7>"), ("<b_0>", "<b_2>"))
    assert index.codes.tolist() == [[1, 0], [0, 1]]
    assert index.strings(0) == ["<a_7>", "<b_0>"]


def test_a_token_for_each_prefix_by_hand():
    index = per_prefix(index_of([[7, 0, 1], [3, 0, 1], [7, 0, 2], [7, 1, 1], [7, 0, 1]], (9, 3, 3)))
    assert index.codes.tolist() == [[1, 1, 1], [0, 0, 0], [1, 1, 2], [1, 2, 3], [1, 1, 1]]
    assert index.tokens == level_tokens((2, 3, 4))


def test_a_token_for_each_prefix_of_codes_of_several_lengths():
    shared = tuple(f"<CI {number}>" for number in range(5))
    index = per_prefix(ItemIndex(np.array([[4, -1], [4, 2], [2, 2], [0, -1]]), (shared, shared)))
    assert index.codes.tolist() == [[2, -1], [2, 1], [1, 0], [0, -1]]
    assert len(index.vocabulary) == 5


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=30))
def test_a_token_for_each_prefix_keeps_the_tree(codes):
    before = index_of(codes, (4, 4, 4))
    after = per_prefix(before)
    for depth in (1, 2, 3):
        groups = [np.unique(index.codes[:, :depth], axis=0, return_inverse=True)[1] for index in (before, after)]
        assert np.array_equal(*[group.reshape(-1) for group in groups])
        assert after.level_sizes[depth - 1] == groups[0].max() + 1  # every token is some prefix's, and no other's


@settings(max_examples=20)
@given(st.integers(1, 12), st.integers(2, 9), st.integers(0, 99), st.sampled_from([0.003, 0.1]))
def test_transport_plan_has_uniform_marginals(items, codes, seed, epsilon):
    distances = torch.rand(items, codes, generator=torch.Generator().manual_seed(seed))
    plan = uniform_plan(centred(distances), epsilon, iterations=300)
    assert torch.isfinite(plan).all()
    assert plan.sum(0).tolist() == pytest.approx([1 / codes] * codes)
    if epsilon == 0.1:  # the sharper one converges more slowly
        assert plan.sum(1).tolist() == pytest.approx([1 / items] * items, rel=1e-2)


def test_transport_spreads_items_that_prefer_one_code():
    distances = torch.tensor([[0.0, 1.0], [0.1, 0.6]])  # both prefer code 0; the second loses less by code 1
    assert distances.argmin(1).tolist() == [0, 0]
    assert uniform_plan(centred(distances), 0.003).argmax(1).tolist() == [0, 1]


def quantised(codes, residuals, codebook):
    return Quantised(np.array(codes, np.int32), torch.tensor(residuals), torch.tensor(codebook), 0.0)


def test_repair_parts_items_and_leaves_identical_ones():
    codebook = [[0.0], [1.0], [5.0]]
    given_codes = [[0, 0], [0, 0], [1, 2], [1, 2], [2, 1]]
    before = quantised(given_codes, [[0.0], [0.4], [5.0], [5.0], [1.0]], codebook)
    after = sinkhorn_repair(before, 0.003)
    assert after[:2].tolist() == [[0, 0], [0, 2]]  # of the even shares, 2 is what the first item would mind most
    assert after[2].tolist() == after[3].tolist()  # the same vector: no plan tells them apart
    assert after[4].tolist() == [2, 1]
    assert before.codes.tolist() == given_codes
    parted = separate(after, before.residuals, before.codebook)
    assert len(np.unique(parted, axis=0)) == 5
    assert parted[2].tolist() == after[2].tolist()


def test_separate_takes_the_nearest_free_code_until_none_is():
    codes = np.array([[0, 2], [0, 2], [0, 2], [0, 2], [0, 1]], np.int32)
    residuals, codebook = torch.tensor([[5.0]] * 4 + [[1.0]]), torch.tensor([[0.0], [1.0], [5.0]])
    assert separate(codes, residuals, codebook).tolist() == [[0, 2], [0, 0], [0, 2], [0, 2], [0, 1]]


@settings(max_examples=20)
@given(st.integers(2, 40), st.integers(0, 99))
def test_repair_never_leaves_the_prefix_and_separate_makes_distinct(items, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 3, (items, 2))
    before = quantised(
        codes, rng.integers(0, 4, (items, 2)).astype(np.float32).tolist(), rng.normal(size=(40, 2)).tolist()
    )
    before = before._replace(residuals=before.residuals.float(), codebook=before.codebook.float())
    after = separate(sinkhorn_repair(before, 0.003), before.residuals, before.codebook)
    assert (after[:, 0] == codes[:, 0]).all()
    assert not colliding(after)


def test_coarse_leaves_by_hand():
    codes = np.array([[0, 0], [0, 0], [0, 1], [1, 0], [0, 0]])
    vectors = np.array([[0.0], [0.3], [1.0], [9.0], [0.1]])
    fixed = np.array([0, 0, 0, 0, 7])
    moved, count = move_to_free(fixed, codes, vectors, 3)
    # leaf (0, 0) has mean 0.13: item 0 stays; item 1 finds (0, 1) taken in its group and takes (0, 2), which is empty
    assert moved.tolist() == [[0, 0], [0, 2], [0, 1], [1, 0], [0, 0]]
    assert count == 1


def test_coarse_leaves_move_to_the_nearest_parent_with_room():
    codes = np.array([[0, 0], [0, 0], [0, 1], [1, 0]])
    vectors = np.array([[0.0], [0.3], [1.0], [9.0]])
    moved, count = move_to_free(np.zeros(4, int), codes, vectors, 2)
    assert moved.tolist() == [[0, 0], [1, 1], [0, 1], [1, 0]]
    assert count == 1


def test_coarse_leaves_keep_the_item_nearest_to_their_mean():
    codes, vectors = np.zeros((3, 1), int), np.array([[0.0], [2.0], [2.5]])  # mean 1.5
    moved, count = move_to_free(np.zeros(3, int), codes, vectors, 3)
    assert moved[:, 0].tolist() == [1, 0, 2]
    assert count == 2


def test_coarse_leaves_choose_the_nearest_of_several_parents():
    # node 0 is full; of the nodes 1 and 2, with a free leaf each, 2 is nearer to item 1
    codes = np.array([[0, 0], [0, 0], [0, 1], [0, 2], [1, 0], [2, 0]])
    vectors = np.array([[0.0], [0.2], [1.0], [1.0], [50.0], [3.0]])
    moved, _ = move_to_free(np.zeros(6, int), codes, vectors, 3)
    assert moved[1].tolist() == [2, 1]


def test_coarse_leaves_without_room():
    with pytest.raises(PoorIndex, match="No free code"):
        move_to_free(np.zeros(5, int), np.zeros((5, 2), int), np.zeros((5, 1)), 2)


def test_quality_by_hand():
    index = index_of([[0, 0], [0, 0], [0, 1], [1, 1]], (2, 4))
    report = quality_report(index)
    assert report["items"] == 4
    assert report["distinct"] == 3
    assert report["collision_rate"] == 0.25
    assert report["items_in_collisions"] == 2
    assert report["used"] == [2, 2]
    assert report["use"] == [1.0, 0.5]
    first = 2 - 0.75 * math.log2(3)  # entropy of 3/4 and 1/4
    assert report["prefix_bits"] == pytest.approx([first, 1.5])
    assert report["perplexity"] == pytest.approx([2**first, 2.0])
    assert report["fan_out"] == [2.0, 1.5]
    assert "neighbours_first_token" not in report


def test_quality_of_codes_of_several_lengths():
    index = ItemIndex(np.array([[0, -1], [0, 0], [1, 0], [1, 1]]), (("<CI 0>", "<CI 1>"),) * 2)
    report = quality_report(index)
    assert report["distinct"] == 4
    assert report["mean_length"] == 1.75
    assert report["used"] == [2, 2]
    assert report["prefix_bits"] == [1.0, 2.0]


def test_neighbour_agreement_by_hand():
    # two directions of 11 items each: an item's 10 nearest are the others of its direction
    vectors = np.repeat(np.eye(2, dtype=np.float32), 11, axis=0)
    follows = index_of([[i // 11, i % 11] for i in range(22)], (2, 11))
    report = quality_report(follows, vectors)
    assert report["neighbours_first_token"] == 1.0
    assert report["neighbours_common_prefix"] == 1.0
    assert report["random_first_token"] == pytest.approx(10 / 21)
    against = quality_report(index_of([[i % 11, i // 11] for i in range(22)], (11, 2)), vectors)
    assert against["neighbours_first_token"] == 0.0
    assert against["random_first_token"] == pytest.approx(1 / 21)


def test_poor_indices_are_refused():
    collided = quality_report(index_of([[0], [0], [1], [2]], (3,)))
    with pytest.raises(PoorIndex, match=r"3 codes for 4 items: a collision rate of 25.0%"):
        refuse_poor(collided, IndexConfig())
    refuse_poor(collided, IndexConfig(max_collision_rate=0.25))
    collapsed = quality_report(index_of([[0, i] for i in range(40)], (256, 40)))
    with pytest.raises(PoorIndex, match="uses 1 of 40 codes on its first level"):
        refuse_poor(collapsed, IndexConfig())
    refuse_poor(collapsed, IndexConfig(min_first_level_use=0.0))
