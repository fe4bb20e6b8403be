"""LightGCN against dense matrices, negatives outside a user's items, users and items without a neighbour."""

import numpy as np
import pytest
import torch
from conftest import make_data, make_histories

from genrec_bench.datasets.interactions import Histories, TrainView
from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.base import Context
from genrec_bench.methods.checkpoint import Checkpoint
from genrec_bench.methods.encoders import lightgcn
from genrec_bench.methods.encoders.lightgcn import LightGCN, LightGCNConfig, LightGCNModel

# user 3 has no row, item 4 no user; user 2 touched every other item; a repeated pair is one edge
ROWS, USERS, NUM_USERS, NUM_ITEMS = [[0, 1, 0], [1], [0, 1, 2, 3]], [0, 1, 2], 4, 5


def view_of(rows=ROWS, users=USERS, num_users=NUM_USERS, num_items=NUM_ITEMS) -> TrainView:
    return TrainView(num_users, make_data([[0]], num_items=num_items).items, make_histories(rows, users))


def dense(view: TrainView) -> torch.Tensor:
    """D^-1/2 A D^-1/2 written out."""
    adjacency = torch.zeros(view.num_users + view.num_items, view.num_users + view.num_items)
    for user, row in zip(view.sequences.users, range(len(view.sequences)), strict=True):
        for item in view.sequences.row(row):
            adjacency[user, view.num_users + item] = adjacency[view.num_users + item, user] = 1.0
    scale = adjacency.sum(1).clamp_min(1e-9).rsqrt() * (adjacency.sum(1) > 0)
    return scale[:, None] * adjacency * scale[None, :]


def test_adjacency_by_hand():
    matrix = lightgcn.normalised_adjacency(view_of()).to_dense()
    assert torch.allclose(matrix, dense(view_of()))
    assert matrix[0, 4].item() == pytest.approx(1 / 2)  # user 0 has 2 items, item 0 has 2 users
    assert matrix[4 + 3, 2].item() == pytest.approx(1 / 2)  # item 3 has 1 user, who has 4 items
    assert not matrix[3].any()
    assert not matrix[:, 4 + 4].any()


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_propagation_and_its_gradient_equal_dense_matrices(layers):
    torch.manual_seed(0)
    adjacency = dense(view_of())
    own = torch.randn(9, 3, requires_grad=True)
    theirs = own.detach().clone().requires_grad_()
    powers = [torch.linalg.matrix_power(adjacency, power) for power in range(layers + 1)]
    expected = sum(powers) / (layers + 1) @ theirs
    found = lightgcn.propagate(lightgcn.normalised_adjacency(view_of()), own, layers)
    assert torch.allclose(found, expected, atol=1e-6)
    weights = torch.randn(9, 3)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.allclose(own.grad, theirs.grad, atol=1e-6)


def test_negatives_are_uniform_over_items_outside_the_users_own():
    edges = lightgcn.edges(view_of())
    assert edges.tolist() == [[0, 0, 1, 2, 2, 2, 2], [0, 1, 1, 0, 1, 2, 3]]
    rng = np.random.default_rng(0)
    drawn = np.stack([lightgcn.negatives(edges, NUM_ITEMS, rng) for _ in range(3000)])  # (3000, 7)
    share = [np.bincount(column, minlength=NUM_ITEMS) / 3000 for column in drawn.T]
    np.testing.assert_allclose(share[0], [0, 0, 1 / 3, 1 / 3, 1 / 3], atol=0.04)
    np.testing.assert_allclose(share[2], [1 / 4, 0, 1 / 4, 1 / 4, 1 / 4], atol=0.04)
    np.testing.assert_array_equal(share[6], [0, 0, 0, 0, 1])


def test_loss_by_hand():
    """One user, one item, one other: layer 0 is u = 1, i = 2, n = 3, weights 1; u and i mix in one layer."""
    view = view_of([[0]], [0], num_users=1, num_items=2)
    config = LightGCNConfig(dim=1, layers=1, regularisation=0.1)
    model = LightGCNModel(view, config)
    with torch.no_grad():
        model.layer0[:, 0] = torch.tensor([1.0, 2.0, 3.0])
    (loss,) = lightgcn._step_losses(model, view, config, np.random.default_rng(0))
    margin = 1.5 * (1.5 - 1.5)  # u = i = (1 + 2) / 2; n = 3 / 2, which nobody touched
    assert loss.item() == pytest.approx(np.log(1 + np.exp(-margin)) + 0.05 * (1 + 4 + 9))


def fit(view: TrainView, tmp_path, epochs: int, seed: int = 0) -> LightGCN:
    method = LightGCN(LightGCNConfig(dim=4, epochs=epochs, learning_rate=0.05, batch_size=8))
    torch.manual_seed(seed)
    scores = iter(range(1, epochs + 1))
    validate = lambda method, users=0: float(next(scores))  # noqa: E731
    method.fit(view, Context(seed, "cpu", "tiny", Checkpoint(None), ArtefactCache(tmp_path), validate))
    return method


def test_two_groups_are_told_apart_and_a_seed_repeats(tmp_path):
    """Two groups of users and items; each user has one item of the group left out."""
    rows = [[(user + shift) % 5 + 5 * (user % 2) for shift in range(4)] for user in range(20)]
    view = view_of(rows, list(range(20)), 20, 10)
    method = fit(view, tmp_path, 60)
    ranking = method.recommend(Histories(*vars(make_histories(rows)).values()), 5)
    own = ranking.items // 5 == (np.arange(20) % 2)[:, None]
    assert own.mean() == 1.0
    again = fit(view, tmp_path, 60)
    assert torch.equal(method.model.item_table(), again.model.item_table())
    assert not torch.equal(method.model.item_table(), fit(view, tmp_path, 60, seed=1).model.item_table())
    method.save(tmp_path)
    loaded = LightGCN(method.config)
    loaded.load(tmp_path, view, Context(0, "cpu", "tiny", Checkpoint(None), ArtefactCache(tmp_path), None))
    assert torch.equal(loaded.model.item_table(), method.model.item_table())


def test_nodes_without_neighbours_and_users_without_negatives(tmp_path):
    method = fit(view_of([[0, 1, 0], [1], [0, 1, 2, 3, 4]]), tmp_path, 3)  # user 2 touched everything
    users, items = method.model.vectors()
    assert torch.isfinite(users).all()
    assert torch.isfinite(items).all()
    unknown = fit(view_of(), tmp_path, 3).model
    assert torch.allclose(unknown.item_table()[4], unknown.layer0[NUM_USERS + 4] / 3)
