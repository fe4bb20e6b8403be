"""Graph encoders by hand: products on every back end, layers, losses, views, folding in, what no step may know."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_data, make_histories

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.interactions import Histories, InteractionData, TrainView
from genrec_bench.datasets.splits import leave_one_out
from genrec_bench.methods import registry
from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.base import Context
from genrec_bench.methods.checkpoint import Checkpoint
from genrec_bench.methods.encoders import graph, propagation, sgl
from genrec_bench.methods.encoders.graph import GraphConfig, GraphEncoder, GraphModel, bpr_loss, info_nce
from genrec_bench.methods.encoders.lightgcn import LightGCN, LightGCNConfig
from genrec_bench.methods.encoders.propagation import BACKENDS, normalised_adjacency, propagate, step
from genrec_bench.methods.encoders.sgl import SGL, SGLConfig
from genrec_bench.methods.encoders.xsimgcl import XSimGCL, XSimGCLConfig, noisy_layers

# user 3 has no row, item 4 no user; user 2 touched every other item; a repeated pair is one edge
ROWS, USERS, NUM_USERS, NUM_ITEMS = [[0, 1, 0], [1], [0, 1, 2, 3]], [0, 1, 2], 4, 5
ENCODERS = ("lightgcn", "sgl", "xsimgcl")


def view_of(rows=ROWS, users=USERS, num_users=NUM_USERS, num_items=NUM_ITEMS) -> TrainView:
    return TrainView(num_users, make_data([[0]], num_items=num_items).items, make_histories(rows, users))


def adjacency_of(view: TrainView) -> propagation.Adjacency:
    return normalised_adjacency(graph.edges(view), view.num_users, view.num_items)


def dense(view: TrainView) -> torch.Tensor:
    """D^-1/2 A D^-1/2 written out."""
    adjacency = torch.zeros(view.num_users + view.num_items, view.num_users + view.num_items)
    for user, row in zip(view.sequences.users, range(len(view.sequences)), strict=True):
        for item in view.sequences.row(row):
            adjacency[user, view.num_users + item] = adjacency[view.num_users + item, user] = 1.0
    scale = adjacency.sum(1).clamp_min(1e-9).rsqrt() * (adjacency.sum(1) > 0)
    return scale[:, None] * adjacency * scale[None, :]


def fit(name: str, view: TrainView, tmp_path, epochs: int, seed: int = 0, **config) -> GraphEncoder:
    """Trained for all epochs: each counts as better than the last."""
    settings = {"dim": 4, "epochs": epochs, "learning_rate": 0.05, "batch_size": 8, **config}
    method = registry.get(name)(registry.configure(name, settings))
    torch.manual_seed(seed)
    scores = iter(range(1, epochs + 1))
    validate = lambda method, users=0: float(next(scores))  # noqa: E731
    method.fit(view, Context(seed, "cpu", "tiny", Checkpoint(None), ArtefactCache(tmp_path), validate))
    return method


def test_adjacency_by_hand():
    adjacency = adjacency_of(view_of())
    matrix = adjacency.to_sparse().to_dense()
    assert torch.allclose(matrix, dense(view_of()))
    assert matrix[0, 4].item() == pytest.approx(1 / 2)  # user 0 has 2 items, item 0 has 2 users
    assert matrix[4 + 3, 2].item() == pytest.approx(1 / 2)  # item 3 has 1 user, who has 4 items
    assert not matrix[3].any()
    assert not matrix[:, 4 + 4].any()
    assert adjacency.degrees.tolist() == [2, 1, 4, 0, 2, 3, 1, 1, 0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layers", [1, 3])
def test_propagation_and_its_gradient_equal_dense_matrices(backend, layers):
    if backend == "dgl":
        pytest.importorskip("dgl")
    torch.manual_seed(0)
    own = torch.randn(9, 3, requires_grad=True)
    theirs = own.detach().clone().requires_grad_()
    expected = sum(torch.linalg.matrix_power(dense(view_of()), power) for power in range(layers + 1)) @ theirs
    product = BACKENDS[backend](adjacency_of(view_of()), "cpu")
    found = propagate([product] * layers, own)
    assert torch.allclose(found, expected / (layers + 1), atol=1e-6)
    weights = torch.randn(9, 3)
    (found * weights).sum().backward()
    (expected / (layers + 1) * weights).sum().backward()
    assert torch.allclose(own.grad, theirs.grad, atol=1e-6)
    assert torch.allclose(step(product, own), dense(view_of()) @ own, atol=1e-6)


def test_layers_over_different_graphs_and_their_gradient():
    """As a random walk has them: the second layer sees other edges."""
    views = [view_of(), view_of([[4], [0, 1], [3]], USERS)]
    torch.manual_seed(0)
    own = torch.randn(9, 3, requires_grad=True)
    theirs = own.detach().clone().requires_grad_()
    first, second = (dense(view) for view in views)
    expected = (theirs + first @ theirs + second @ first @ theirs) / 3
    found = propagate([BACKENDS["bag"](adjacency_of(view), "cpu") for view in views], own)
    assert torch.allclose(found, expected, atol=1e-6)
    weights = torch.randn(9, 3)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.allclose(own.grad, theirs.grad, atol=1e-6)


def two_by_three(config: GraphConfig, first_layer: int) -> GraphModel:
    """Users a: {0, 1}, b: {1, 2}; layer 0 is a = 1, b = 2, items 4, 8, 16."""
    model = GraphModel(view_of([[0, 1], [1, 2]], [0, 1], 2, 3), config, first_layer)
    with torch.no_grad():
        model.layer0[:, 0] = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    return model


def test_layer_means_by_hand():
    half, root = 0.5, 0.5**0.5  # 1 / sqrt(2 * 2) and 1 / sqrt(2 * 1)
    one = [4 * root + 8 * half, 8 * half + 16 * root, 1 * root, (1 + 2) * half, 2 * root]
    two = [
        one[2] * root + one[3] * half,
        one[3] * half + one[4] * root,
        one[0] * root,
        (one[0] + one[1]) * half,
        one[1] * root,
    ]
    nodes = torch.cat(two_by_three(LightGCNConfig(dim=1, layers=2), LightGCN.first_layer).vectors())[:, 0]
    expected = [(a + b + c) / 3 for a, b, c in zip([1, 2, 4, 8, 16], one, two, strict=True)]
    assert nodes.tolist() == pytest.approx(expected)
    model = two_by_three(XSimGCLConfig(dim=1, layers=2), XSimGCL.first_layer)
    assert torch.cat(model.vectors())[:, 0].tolist() == pytest.approx(
        [(b + c) / 2 for b, c in zip(one, two, strict=True)]
    )
    silent = noisy_layers(model, 0.0, torch.Generator())
    assert [layer[:, 0].tolist() for layer in silent] == [pytest.approx(one), pytest.approx(two)]


def test_noise_has_the_sign_of_what_it_disturbs_and_the_length_eps():
    model = GraphModel(view_of(), XSimGCLConfig(dim=8, layers=2), 1)
    random = torch.Generator().manual_seed(0)
    disturbed, calm = noisy_layers(model, 0.3, random)[0], step(model.product, model.layer0)
    noise = disturbed - calm
    neighbours = torch.cat([torch.from_numpy(model.user_degrees), torch.from_numpy(model.item_degrees)]) > 0
    assert torch.allclose(noise.norm(dim=1), 0.3 * neighbours, atol=1e-6)
    assert (noise * calm >= 0).all()
    assert not torch.equal(noisy_layers(model, 0.3, random)[0], disturbed)


def test_negatives_are_uniform_over_items_outside_the_users_own():
    edges = graph.edges(view_of())
    assert edges.tolist() == [[0, 0, 1, 2, 2, 2, 2], [0, 1, 1, 0, 1, 2, 3]]
    rng = np.random.default_rng(0)
    drawn = np.stack([graph.negatives(edges, NUM_ITEMS, rng) for _ in range(3000)])  # (3000, 7)
    share = [np.bincount(column, minlength=NUM_ITEMS) / 3000 for column in drawn.T]
    np.testing.assert_allclose(share[0], [0, 0, 1 / 3, 1 / 3, 1 / 3], atol=0.04)
    np.testing.assert_allclose(share[2], [1 / 4, 0, 1 / 4, 1 / 4, 1 / 4], atol=0.04)
    np.testing.assert_array_equal(share[6], [0, 0, 0, 0, 1])


def test_bpr_by_hand():
    """One user, one item, one other: layer 0 is u = 1, i = 2, n = 3, weights 1; u and i mix in one layer."""
    model = GraphModel(view_of([[0]], [0], 1, 2), LightGCNConfig(dim=1, layers=1, regularisation=0.1))
    with torch.no_grad():
        model.layer0[:, 0] = torch.tensor([1.0, 2.0, 3.0])
    (triple,) = model.triples(np.random.default_rng(0))
    assert triple.tolist() == [[0], [0], [1]]
    margin = 1.5 * (1.5 - 1.5)  # u = i = (1 + 2) / 2; n = 3 / 2, which nobody touched
    expected = np.log(1 + np.exp(-margin)) + 0.05 * (1 + 4 + 9)
    assert bpr_loss(model, model(), triple).item() == pytest.approx(expected)


@pytest.mark.parametrize("negatives", ["batch", "all"])
def test_info_nce_equals_a_double_loop(negatives):
    torch.manual_seed(0)
    one, other = torch.randn(7, 3), torch.randn(7, 3)
    rows = torch.tensor([5, 1, 5, 2])  # node 5 counts once
    terms = []
    for i in (1, 2, 5):
        cosine = {j: torch.cosine_similarity(one[i], other[j], dim=0) / 0.3 for j in range(7)}
        others = (1, 2, 5) if negatives == "batch" else range(7)
        terms.append(-torch.log(cosine[i].exp() / sum(cosine[j].exp() for j in others)))
    assert info_nce(one, other, rows, 0.3, negatives).item() == pytest.approx(float(sum(terms) / 3), rel=1e-5)


def kept(augmentation: str, seed: int = 0, layers: int = 3) -> tuple[np.ndarray, list[np.ndarray]]:
    edges = graph.edges(view_of([[(user * 7 + k) % 30 for k in range(10)] for user in range(20)], range(20), 20, 30))
    return edges, sgl.kept_edges(edges, 20, 30, augmentation, 0.2, layers, np.random.default_rng(seed))


def test_edge_drop_and_random_walk_drop_edges():
    edges, same = kept("edge_drop")
    assert [mask.sum() for mask in same] == [160]  # one graph for all layers
    _, walk = kept("random_walk")
    assert [mask.sum() for mask in walk] == [160] * 3
    assert len({mask.tobytes() for mask in walk}) == 3
    whole = [[mask[edges[0] == user].all() for user in range(20)] for mask in (same[0], *walk)]
    assert not np.array(whole).all(1).any()


def test_node_drop_drops_every_edge_of_a_node():
    edges, (mask,) = kept("node_drop")
    gone_users = [user for user in range(20) if not mask[edges[0] == user].any()]
    gone_items = [item for item in range(30) if not mask[edges[1] == item].any()]
    assert (len(gone_users), len(gone_items)) == (4, 6)
    np.testing.assert_array_equal(mask, ~(np.isin(edges[0], gone_users) | np.isin(edges[1], gone_items)))


@pytest.mark.parametrize("augmentation", ["edge_drop", "node_drop", "random_walk"])
def test_views_differ_repeat_by_seed_and_share_a_graph_unless_they_walk(augmentation):
    method = SGL(SGLConfig(dim=4, layers=3, augmentation=augmentation, rate=0.3))
    rows = [[(user * 7 + k) % 30 for k in range(10)] for user in range(20)]
    method.model = GraphModel(view_of(rows, range(20), 20, 30), method.config)

    def views(epoch):
        rng = np.random.default_rng([0, epoch])
        return [propagate(method._view(rng), method.model.layer0) for _ in range(2)]

    first, again, later = views(0), views(0), views(1)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], later[0])
    assert len(set(method._view(np.random.default_rng(0)))) == (3 if augmentation == "random_walk" else 1)


@pytest.mark.parametrize("augmentation", ["edge_drop", "node_drop", "random_walk"])
def test_every_augmentation_shapes_what_sgl_learns(tmp_path, augmentation):
    view = two_groups()
    tables = [
        fit("sgl", view, tmp_path, 1, **settings).model.item_table()
        for settings in (
            {"weight": 0.0},
            {"augmentation": augmentation},
            {"augmentation": augmentation, "negatives": "all"},
        )
    ]
    assert all(torch.isfinite(table).all() for table in tables)
    assert not torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[1], tables[2])


def two_groups() -> TrainView:
    """Two groups of users and items; each user has one item of the group left out."""
    rows = [[(user + shift) % 5 + 5 * (user % 2) for shift in range(4)] for user in range(20)]
    return view_of(rows, list(range(20)), 20, 10)


@pytest.mark.parametrize("name", ENCODERS)
def test_two_groups_are_told_apart_and_a_seed_repeats(tmp_path, name):
    view = two_groups()
    method = fit(name, view, tmp_path, 80, batch_size=40)
    best = method.recommend(view.sequences, 5).items
    assert (best // 5 == (np.arange(20) % 2)[:, None]).all()  # the left-out item before those of the other group
    method, again, other = (fit(name, view, tmp_path, 2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(method.model.item_table(), again.model.item_table())
    assert not torch.equal(method.model.item_table(), other.model.item_table())


class Killed(BaseException):
    pass


@pytest.mark.parametrize("name", ENCODERS)
def test_resumed_training_equals_undisturbed(tmp_path, name):
    view = two_groups()
    settings = {"dim": 4, "epochs": 6, "batch_size": 8, "learning_rate": 0.05}

    def train(stop_after=None):
        asked = []

        def validate(method, users=0):
            asked.append(1)
            if len(asked) == stop_after:
                raise Killed
            return 0.5

        method = registry.get(name)(registry.configure(name, settings))
        torch.manual_seed(0)
        checkpoint = Checkpoint(tmp_path / ("stopped" if stop_after or resumed else "whole"), every_s=0.0)
        method.fit(view, Context(0, "cpu", "tiny", checkpoint, ArtefactCache(tmp_path), validate))
        return method.model.item_table()

    resumed = False
    whole = train()
    with pytest.raises(Killed):
        train(stop_after=3)
    resumed = True
    assert torch.equal(train(), whole)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_training_history_folds_in_as_the_graphs_own_vector(tmp_path, name):
    method = fit(name, view_of(), tmp_path, 3, layers=3)
    histories = make_histories([[1, 0], [1, 1], [3, 2, 0, 1]], USERS)  # order and repetition say nothing
    assert torch.allclose(method.user_vectors(histories), method.model.vectors()[0][USERS], atol=1e-6)
    learned = type(method)(method.config.model_copy(update={"test_edges": "train"}))
    learned.model = method.model
    assert torch.equal(learned.user_vectors(histories), method.model.vectors()[0][USERS])


@pytest.mark.parametrize("name", ENCODERS)
def test_folding_in_by_hand(tmp_path, name):
    """e_u^(l+1) = sum over the history of e_i^(l) / sqrt(|history| max(degree_i, 1)); unknown users start at zero."""
    method = fit(name, view_of(), tmp_path, 3, layers=2)
    layer0, matrix = method.model.layer0.detach(), dense(view_of())
    layers = [layer0[NUM_USERS:], (matrix @ layer0)[NUM_USERS:]]
    degree = [2, 3, 1, 1, 1]  # item 4 has nobody and counts as one
    for user, history in ((0, [0, 1, 4]), (3, [4, 2]), (NUM_USERS, [1, 3]), (NUM_USERS, [])):
        own = layer0[user] if user == 0 else torch.zeros(4)  # user 3 has no training interaction
        later = [
            sum((layer[i] / (len(history) * degree[i]) ** 0.5 for i in history), torch.zeros(4)) for layer in layers
        ]
        expected = (later[0] + later[1]) / 2 if name == "xsimgcl" else (own + later[0] + later[1]) / 3
        found = method.user_vectors(make_histories([history], [user]))[0]
        assert torch.allclose(found, expected, atol=1e-6)


def test_users_of_train_edges_are_their_numbers(tmp_path):
    method = fit("lightgcn", view_of(), tmp_path, 3, test_edges="train")
    both = method.user_vectors(make_histories([[4], [1, 2], [0], [0]], [0, 0, 3, NUM_USERS]))
    assert torch.equal(both[0], both[1])
    assert not both[2:].any()
    assert (method.model.item_degrees > 0).tolist() == [True, True, True, True, False]


@pytest.mark.parametrize("name", ENCODERS)
def test_held_out_items_change_nothing_that_is_learned(tiny: InteractionData, tmp_path, name):
    items = tiny.sequences.items.copy()
    for end in tiny.sequences.offsets[1:]:
        items[end - 2 : end] = 0
    sequences = Histories(tiny.sequences.users, tiny.sequences.offsets, items)
    poisoned = replace(tiny, sequences=sequences, sha256="")
    tables = [fit(name, leave_one_out(data).train, tmp_path, 2).model.layer0 for data in (tiny, poisoned)]
    assert torch.equal(*tables)


@pytest.mark.parametrize("name", ENCODERS)
def test_nodes_without_neighbours_and_users_without_negatives(tmp_path, name):
    method = fit(name, view_of([[0, 1, 0], [1], [0, 1, 2, 3, 4]]), tmp_path, 3)  # user 2 touched everything
    assert all(torch.isfinite(part).all() for part in method.model.vectors())
    nobody = fit(name, view_of([[0]], [0], 1, 1), tmp_path, 2)  # no user has a negative: nothing to learn
    assert torch.isfinite(nobody.score(make_histories([[0]]))).all()
    unknown = fit("lightgcn", view_of(), tmp_path, 3).model
    assert torch.allclose(unknown.item_table()[4], unknown.layer0[NUM_USERS + 4] / 3)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("xsimgcl", {"layers": 1}, r"xsimgcl: layers=1 makes both views the same vector, layer 1: use 2 or more"),
        ("xsimgcl", {"contrast_layer": 4}, r"contrast_layer=4 must not exceed layers=3"),
        ("sgl", {"rate": 0.0}, r"sgl\.rate = 0\.0: Input should be greater than 0"),
        ("sgl", {"augmentation": "walk"}, r"sgl\.augmentation = 'walk'"),
        ("lightgcn", {"test_edges": "valid"}, r"lightgcn\.test_edges = 'valid'"),
        ("lightgcn", {"layer": 2}, "Unknown setting of lightgcn 'layer'. Did you mean: layers"),
    ],
)
def test_bad_settings(name, settings, message):
    with pytest.raises(InputError, match=message):
        registry.configure(name, settings)


def test_the_back_end_follows_the_device_or_the_variable(monkeypatch):
    monkeypatch.delenv(propagation.VARIABLE, raising=False)
    assert [propagation.backend_for(device) for device in ("cpu", "cuda")] == ["bag", "sparse"]
    monkeypatch.setenv(propagation.VARIABLE, "dgl")
    assert propagation.backend_for("cpu") == "dgl"
    monkeypatch.setenv(propagation.VARIABLE, "dlg")
    with pytest.raises(InputError, match=r"'dlg'\. Did you mean: dgl"):
        propagation.backend_for("cpu")


def test_a_missing_dgl_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "dgl", None)
    with pytest.raises(InputError, match="dgl cannot be imported"):
        BACKENDS["dgl"](adjacency_of(view_of()), "cpu")
