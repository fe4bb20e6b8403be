"""Caser: filters by hand and by plain loops, windows, padding and unknown users, what the loss is taken over."""

import numpy as np
import pytest
import torch
from conftest import make_data, make_histories
from hypothesis import given
from hypothesis import strategies as st
from test_methods import fitted, view_of
from torch.nn import functional

from genrec_bench.datasets.interactions import TrainView
from genrec_bench.methods import caser, losses
from genrec_bench.methods.caser import Caser, CaserConfig, CaserModel, examples, left_padded

USERS, ITEMS, PAD = 4, 6, 6
SMALL = {"dim": 3, "max_length": 4, "horizontal": 2, "vertical": 2}


def random_model(**config) -> CaserModel:
    """Every weight random, but for the zeros of padding and of the unknown user."""
    torch.manual_seed(0)
    model = CaserModel(USERS, ITEMS, CaserConfig(**{**SMALL, **config})).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.normal_()
        model.items.weight[PAD] = 0.0
        model.users.weight[USERS] = 0.0
    return model


def random_method(**config) -> Caser:
    method = Caser(CaserConfig(**{**SMALL, **config}))
    method.model = random_model(**config)
    return method


def test_filters_by_hand():
    """d = 1, L = 2, items worth 2 and -3, one filter of each height and one vertical, a layer that adds all up."""
    model = CaserModel(1, 2, CaserConfig(dim=1, max_length=2, horizontal=1, vertical=1)).eval()
    with torch.no_grad():
        model.items.weight[:2] = torch.tensor([[2.0], [-3.0]])
        model.users.weight[0] = 5.0
        for filters, weights, bias in zip(model.horizontal, ([-1.0], [1.0, -2.0]), (0.5, 0.25), strict=True):
            filters.weight[:] = torch.tensor(weights)
            filters.bias[:] = bias
        model.vertical.weight[:] = torch.tensor([[10.0, 1.0]])
        model.sequence.weight[:] = 1.0
        model.sequence.bias[:] = 0.125
        model.out.weight[:] = torch.tensor([[1.0, 0.0], [2.0, -1.0]])
        model.out.bias[:] = torch.tensor([0.0, 7.0])
    # height 1: max(-2, 3) + 0.5; height 2: 2 + 6 + 0.25; vertical: 20 - 3; z = 3.5 + 8.25 + 17 + 0.125
    hidden = model(torch.tensor([[0, 1]]), torch.tensor([0]))
    assert hidden.tolist() == [[28.875, 5.0]]
    assert model.out(hidden).tolist() == [[28.875, 59.75]]
    # padding before item 0: max(0, -2) + 0.5; 0 - 4 + 0.25 is below zero; 2; an unknown user
    assert model(torch.tensor([[2, 0]]), torch.tensor([1])).tolist() == [[2.625, 0.0]]


def plain_hidden(model: CaserModel, window: list[int], user: int) -> list[float]:
    """The equations of the paper's section 3, one number at a time."""
    image = [model.items.weight[item].tolist() for item in window]
    length, dim = len(image), len(image[0])
    features = []
    for height, filters in enumerate(model.horizontal, start=1):
        for weights, bias in zip(filters.weight.tolist(), filters.bias.tolist(), strict=True):
            values = []
            for top in range(length - height + 1):
                value = bias
                for i in range(height):
                    for j in range(dim):
                        value += weights[j][i] * image[top + i][j]
                values.append(max(value, 0.0))
            features.append(max(values))
    for weights in model.vertical.weight.tolist():
        features += [sum(weights[i] * image[i][j] for i in range(length)) for j in range(dim)]
    z = [
        max(sum(w * feature for w, feature in zip(row, features, strict=True)) + bias, 0.0)
        for row, bias in zip(model.sequence.weight.tolist(), model.sequence.bias.tolist(), strict=True)
    ]
    return z + model.users.weight[user].tolist()


def test_scores_are_the_papers_equations():
    method = random_method()
    rows, users = [[0, 1, 2, 3], [4, 5, 0, 0, 1], [2], []], [0, 3, 1, 2]
    scores = method.score(make_histories(rows, users))
    for row, user, found in zip(rows, users, scores, strict=True):
        hidden = torch.tensor(plain_hidden(method.model, ([PAD] * 4 + row)[-4:], user))
        assert torch.allclose(found, method.model.out.weight @ hidden + method.model.out.bias, atol=1e-4)


def test_padding_never_leaks():
    """A row's scores do not depend on the rows beside it, and padding's vector stays zero whatever is learned."""
    method = random_method()
    rows = [[3], [0, 1], [5, 4, 3, 2, 1, 0], []]
    together = method.score(make_histories(rows))
    for b, row in enumerate(rows):
        assert torch.allclose(method.score(make_histories([row], [b]))[0], together[b], atol=1e-6)
    assert torch.equal(
        method.score(make_histories([[3] * 9 + [2, 3, 4, 5]])), method.score(make_histories([[2, 3, 4, 5]]))
    )
    trained = fitted("caser", view_of([[0, 1, 2, 3], [3, 2], [4]]), dim=4, epochs=3, weight_decay=0.1)
    assert not trained.model.items.weight[5].any()
    assert trained.model.items.weight[:5].any(1).all()


def test_users_without_a_target_are_the_unknown_one():
    """Numbers beyond training's, users outside the training rows, and one whose only item follows none: zeros."""
    data = make_data([[0, 1, 2, 3], [3, 2, 1], [4], [0, 1]], num_items=5)
    train = TrainView(4, data.items, data.sequences.select(np.array([0, 1, 2])))
    method = fitted("caser", train, dim=4, epochs=3, user_dropout=0.0, averaging=0.5)
    assert method.model.users.weight.any(1).tolist() == [True, True, False, False, False]
    history = [[0, 1, 2]] * 5
    scores = method.score(make_histories(history, [0, 2, 3, 4, 10**9]))
    assert torch.equal(scores[1:], scores[1].expand(4, -1))
    assert not torch.equal(scores[0], scores[1])


def test_the_unknown_user_is_trained_on_its_share(monkeypatch):
    seen = []

    class Noted(CaserModel):
        def forward(self, windows, users):
            if self.training:
                seen.append(users)
            return super().forward(windows, users)

    monkeypatch.setattr(caser, "CaserModel", Noted)
    for share, low, high in ((0.0, 0, 0), (0.5, 0.3, 0.7)):
        seen.clear()
        fitted("caser", view_of([[0, 1, 2, 3] * 10] * 3), dim=2, epochs=2, user_dropout=share)
        assert low <= (torch.cat(seen) == 3).float().mean() <= high


ROWS = st.lists(st.lists(st.integers(0, 8), max_size=9), min_size=1, max_size=5)


@given(ROWS, st.integers(1, 4), st.integers(1, 3), st.integers(1, 12), st.integers(0, 9))
def test_windows_are_every_prefix_once(rows, length, count, positions, seed):
    histories = make_histories(rows, users=[10 + b for b in range(len(rows))])
    expected = []
    for b, row in enumerate(rows):
        for at in range(1, len(row)):
            targets = row[at : at + count]
            before = ([PAD] * length + row[:at])[-length:]
            expected.append((before, 10 + b, targets + [-1] * (count - len(targets))))
    found = []
    for windows, users, targets in examples(histories, length, count, positions, PAD, np.random.default_rng(seed)):
        assert len(windows) <= positions
        found += zip(windows.tolist(), users.tolist(), targets.tolist(), strict=True)
    assert sorted(found) == sorted(expected)


@given(ROWS, st.integers(1, 4))
def test_left_padding(rows, length):
    table = left_padded(make_histories(rows), length, PAD)
    assert table.tolist() == [([PAD] * length + row)[-length:] for row in rows]


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_loss_is_taken_over_all_targets(loss, monkeypatch):
    """T = 2: each window counts once for each of its targets, against the output layer and its bias."""
    config = CaserConfig(**SMALL, targets=2, dropout=0.0, user_dropout=0.0, loss=loss, low_precision_loss=False)
    model = random_model()
    train = view_of([[0, 1, 2], [3, 4]], num_items=ITEMS)
    monkeypatch.setattr(
        losses, "binary", lambda hidden, table, targets, _: functional.cross_entropy(hidden @ table.T, targets)
    )
    (found,) = caser._step_losses(model, train, config, "cpu", np.random.default_rng(0))
    windows = torch.tensor([[6, 6, 6, 0]] * 2 + [[6, 6, 0, 1], [6, 6, 6, 3]])
    scores = model.out(model(windows, torch.tensor([0, 0, 0, 1])))
    assert found.item() == pytest.approx(functional.cross_entropy(scores, torch.tensor([1, 2, 2, 4])).item(), rel=1e-5)
