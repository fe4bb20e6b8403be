"""Random, hierarchical, residual and collaborative codes: properties that hold for any input, and cases by hand."""

import numpy as np
import pytest
import torch
from conftest import make_histories
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from genrec_bench.datasets.errors import InputError
from genrec_bench.methods.indexing import kmeans as km
from genrec_bench.methods.indexing.collaborative import co_occurrence, collaborative_index, spectral_clusters
from genrec_bench.methods.indexing.hierarchical import branching, hierarchical_codes, standardised
from genrec_bench.methods.indexing.random_codes import random_codes
from genrec_bench.methods.indexing.residual import residual_codes


def blobs(items, dim=4, seed=0, centres=5):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(centres, dim)) * 4)[rng.integers(0, centres, items)].astype(np.float32) + rng.normal(
        size=(items, dim)
    ).astype(np.float32)


def distinct(codes):
    return len(np.unique(codes, axis=0))


@settings(max_examples=25)
@given(st.integers(1, 60), st.integers(1, 4), st.integers(2, 8), st.integers(0, 10))
def test_random_codes_are_distinct_within_sizes_and_follow_the_seed(items, levels, codes, seed):
    if codes**levels < items:
        with pytest.raises(InputError, match="the catalogue"):
            random_codes(items, levels, codes, seed)
        return
    drawn = random_codes(items, levels, codes, seed)
    assert drawn.shape == (items, levels)
    assert distinct(drawn) == items
    assert drawn.min() >= 0
    assert drawn.max() < codes
    assert (drawn == random_codes(items, levels, codes, seed)).all()


def test_random_codes_redraw_only_duplicates():
    assert distinct(random_codes(500, 2, 50, seed=1)) == 500  # 2,500 codes: some drawn twice, space above 4 N
    assert (random_codes(50, 4, 256, seed=1) != random_codes(50, 4, 256, seed=2)).any()


@settings(max_examples=25)
@given(
    st.integers(1, 90), st.integers(1, 4), st.integers(0, 5), st.sampled_from(["blobs", "equal", "pairs", "integers"])
)
def test_hierarchical_codes_are_distinct_and_obey_the_cap(items, depth, seed, kind):
    vectors = {
        "blobs": blobs(items, seed=seed),
        "equal": np.ones((items, 3), np.float32),
        "pairs": blobs(items, seed=seed)[np.arange(items) // 2],
        "integers": np.random.default_rng(seed).integers(0, 3, (items, 2)).astype(np.float32),
    }[kind]
    children = branching(items, depth)
    codes = hierarchical_codes(vectors, depth, children, seed)
    assert codes.shape == (items, depth)
    assert codes.min() >= 0
    assert codes.max() < children
    assert distinct(codes) == items
    for level in range(1, depth + 1):
        sizes = np.unique(codes[:, :level], axis=0, return_counts=True)[1]
        assert sizes.max() <= children ** (depth - level)
    assert (codes == hierarchical_codes(vectors, depth, children, seed)).all()


def test_clusters_are_numbered_by_size_then_smallest_item():
    # a line with three clusters: items 0 and 4, items 1, 3 and 5, item 2
    vectors = np.array([[0.0], [10.0], [50.0], [10.1], [0.1], [10.2]], np.float32)
    codes = hierarchical_codes(vectors, 2, 3, seed=0)
    assert codes.tolist() == [[1, 0], [0, 0], [2, 0], [0, 1], [1, 1], [0, 2]]


def test_a_full_cluster_turns_the_least_attached_away():
    # two leaves of two items; three items at 0, of which the one at 0.4 loses least by moving to 1
    vectors = np.array([[0.0], [0.01], [0.4], [1.0]], np.float32)
    codes = hierarchical_codes(vectors, 2, 2, seed=0)
    assert codes[:, 0].tolist() == [0, 0, 1, 1]


def test_coarse_leaves_keep_what_k_means_gives():
    vectors = blobs(200, seed=2)
    children = branching(200, 2, leaf_size=8)
    assert children == 5  # the square root of 25
    codes = hierarchical_codes(vectors, 2, children, seed=0, singletons=False)
    assert 1 < distinct(codes) <= 25
    assert codes.max() < 5


@pytest.mark.parametrize(("items", "depth", "children"), [(12_101, 2, 156), (12_101, 4, 13), (1_000_000, 3, 126)])
def test_branching(items, depth, children):
    assert branching(items, depth) == children


def test_branching_stops_at_its_limit():
    assert branching(60_000, 2) == 256
    with pytest.raises(InputError, match=r"65,536 leaves; the catalogue has 70,000"):
        branching(70_000, 2)
    with pytest.raises(InputError, match="leaves"):
        hierarchical_codes(np.ones((5, 2), np.float32), 2, 2, seed=0)


def test_standardised_survives_constant_columns():
    vectors = standardised(np.array([[1.0, 7.0], [3.0, 7.0]], np.float32))
    assert vectors.tolist() == [[-1.0, 0.0], [1.0, 0.0]]


def test_kmeans_finds_separate_clusters_from_a_sample(monkeypatch):
    monkeypatch.setattr(km, "LEARN", (40, 0))
    monkeypatch.setattr(km, "TRY", (20, 0))
    monkeypatch.setattr(km, "SEED", (10, 0))
    centres = np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]], np.float32)
    points = torch.from_numpy(np.repeat(centres, 300, axis=0) + blobs(900, 2, centres=1) * 0.01)
    found = km.kmeans(points, 3, torch.Generator().manual_seed(0), restarts=3)
    labels = km.nearest(points, found).view(3, 300)
    assert (labels == labels[:, :1]).all()
    assert len(set(labels[:, 0].tolist())) == 3


def test_kmeans_of_fewer_points_than_clusters():
    points = torch.tensor([[0.0], [1.0], [1.0]])
    found = km.kmeans(points, 5, torch.Generator().manual_seed(0))
    assert found.shape == (5, 1)
    assert km.squared_distances(points, found).min(1).values.tolist() == [0.0, 0.0, 0.0]


def test_lloyd_treats_padding_as_nothing():
    points = torch.tensor([[[0.0], [2.0], [10.0]], [[5.0], [7.0], [99.0]]])
    valid = torch.tensor([[True, True, True], [True, True, False]])
    centroids, cost = km.lloyd(points, valid, torch.tensor([[[0.0], [9.0]], [[5.0], [7.0]]]), 10)
    assert centroids[:, :, 0].tolist() == [[1.0, 10.0], [5.0, 7.0]]
    assert cost.tolist() == [2.0, 0.0]


def test_lloyd_gives_an_empty_cluster_the_farthest_point():
    points = torch.tensor([[[0.0], [1.0], [8.0]]])
    centroids, _ = km.lloyd(points, None, torch.tensor([[[0.0], [100.0]]]), 10)
    assert sorted(centroids[0, :, 0].tolist()) == [0.5, 8.0]


def test_residual_codes_by_hand():
    # two far groups, each with the same offsets -1 and +1: level one finds the groups, level two the offsets
    quantised = residual_codes(np.array([[-1.0], [1.0], [99.0], [101.0]]), levels=2, codes=2, seed=0)
    first, second = quantised.codes.T
    assert first[0] == first[1] != first[2] == first[3]
    assert second[0] == second[2] != second[1] == second[3]
    assert quantised.reconstruction_error == pytest.approx(0.0, abs=1e-9)
    assert sorted(quantised.codebook[:, 0].tolist()) == [-1.0, 1.0]
    assert quantised.residuals[:, 0].tolist() == [-1.0, 1.0, -1.0, 1.0]


def test_residual_error_falls_with_levels():
    vectors = blobs(120, dim=6)
    errors = [residual_codes(vectors, levels, 8, seed=0).reconstruction_error for levels in (1, 2, 4)]
    assert 1 > errors[0] > errors[1] > errors[2] > 0


def communities(size):
    """Two cliques of ``size`` items, held together by one user who crosses over."""
    rows = [[i, j] for base in (0, size) for i in range(base, base + size) for j in range(i + 1, base + size)]
    return [*rows, [0, size]]


def test_co_occurrence_counts_sequences():
    graph = co_occurrence(make_histories([[0, 1, 2], [1, 0, 1]]), 4).toarray()
    assert graph.tolist() == [[0, 2, 1, 0], [2, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("dense", [1000, 0])
def test_communities_share_their_first_token(dense, monkeypatch):
    monkeypatch.setattr("genrec_bench.methods.indexing.collaborative.DENSE", dense)
    index = collaborative_index(make_histories(communities(6)), 12, clusters=2, limit=8, seed=0)
    first = index.codes[:, 0]
    assert len(set(first[:6].tolist())) == len(set(first[6:].tolist())) == 1
    assert first[0] != first[6]
    assert index.codes[:6, 1].tolist() == index.codes[6:, 1].tolist() == list(range(6))
    assert index.strings(1) == [f"<CI {first[1]}>", "<CI 1>"]


def test_large_clusters_split_again_and_the_counter_wraps():
    index = collaborative_index(make_histories(communities(6)), 12, clusters=2, limit=4, seed=0)
    assert index.num_distinct == 12
    assert index.tokens[0] == index.tokens[-1] == ("<CI 0>", "<CI 1>", "<CI 2>", "<CI 3>")
    assert index.lengths.min() >= 3  # six items exceed the limit of four
    assert set(index.codes[:, 0].tolist()) == {0, 1}


def test_unseen_items_have_a_last_token_only():
    index = collaborative_index(make_histories(communities(5)), 13, clusters=2, limit=6, seed=0)
    assert index.lengths[10:].tolist() == [1, 1, 1]
    assert index.codes[10:, 0].tolist() == [0, 1, 2]
    assert index.num_distinct == 13
    assert index.variable


def test_more_unseen_items_than_tokens():
    index = collaborative_index(make_histories(communities(5)), 10 + 15, clusters=2, limit=6, seed=0)
    assert index.lengths[10:].tolist() == [2] * 15
    assert set(index.codes[10:, 0].tolist()) == {2, 3, 4}  # 0 and 1 are the clusters'
    assert index.num_distinct == 25
    with pytest.raises(InputError, match="25 items without training interactions"):
        collaborative_index(make_histories(communities(5)), 35, clusters=2, limit=6, seed=0).validate()


@settings(max_examples=15)
@given(st.lists(st.lists(st.integers(0, 29), min_size=1, max_size=6), min_size=1, max_size=25), st.integers(2, 4))
def test_collaborative_codes_are_distinct_on_any_graph(rows, clusters):
    """Isolated items, several components, single-item sequences."""
    index = collaborative_index(make_histories(rows), 30, clusters, limit=9, seed=0)
    assert index.num_distinct == 30


def test_nobody_ever_seen():
    assert collaborative_index(make_histories([]), 4, 2, 5, 0).codes.tolist() == [[0], [1], [2], [3]]


def test_spectral_clusters_of_components():
    block = np.ones((4, 4)) - np.eye(4)
    labels = spectral_clusters(sparse.csr_array(sparse.block_diag([block] * 3)), 3, seed=0)
    assert [len(set(labels[start : start + 4].tolist())) for start in (0, 4, 8)] == [1, 1, 1]
    assert len(set(labels.tolist())) == 3


@pytest.mark.parametrize("dense", [1000, 0])
def test_spectral_clusters_are_scikit_learns(dense, monkeypatch):
    from sklearn.cluster import SpectralClustering

    monkeypatch.setattr("genrec_bench.methods.indexing.collaborative.DENSE", dense)
    rng = np.random.default_rng(0)
    rows = [(rng.integers(0, 4) * 30 + rng.choice(30, 4, replace=False)).tolist() for _ in range(400)]
    rows += [rng.choice(120, 3, replace=False).tolist() for _ in range(60)]
    graph = co_occurrence(make_histories(rows), 120)
    theirs = SpectralClustering(4, affinity="precomputed", assign_labels="cluster_qr", random_state=0)
    assert spectral_clusters(graph, 4, seed=0).tolist() == theirs.fit_predict(graph.toarray() + 1e-6).tolist()


def test_collaborative_tells_few_seen_items_from_unseen_ones():
    """Too few seen items for a split have one token each, as unseen ones have: not the same."""
    index = collaborative_index(make_histories([[0, 2], [2, 4]]), 6, clusters=4, limit=10, seed=0)
    assert sorted(index.strings(item)[0] for item in range(6)) == [f"<CI {number}>" for number in range(6)]
