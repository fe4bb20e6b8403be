"""DIN against a plain loop over pairs of items: in training, in scoring, with and without kept attention."""

import math

import numpy as np
import pytest
import torch
from conftest import make_data, make_histories

from genrec_bench.datasets.interactions import InteractionData, TrainView
from genrec_bench.datasets.splits import leave_one_out
from genrec_bench.methods import din
from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.base import Context
from genrec_bench.methods.checkpoint import Checkpoint
from genrec_bench.methods.din import DIN, DINConfig, DINModel

ITEMS = 9
ROWS = [[3, 1, 4], [], [5], [2, 2, 7, 0, 8]]


@pytest.fixture
def model() -> DINModel:
    torch.manual_seed(0)
    model = DINModel(ITEMS, DINConfig(dim=6, hidden=(7, 5), dropout=0.0)).eval()
    for perceptron in (model.attention, model.prediction):
        for layer in (perceptron.first, perceptron.second, perceptron.last):
            torch.nn.init.normal_(layer.bias)
    torch.nn.init.normal_(model.items.weight[:ITEMS])
    return model


def perceptron(layers: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    for layer in (layers.first, layers.second):
        inputs = (layer.weight @ inputs + layer.bias).clamp_min(0)
    return (layers.last.weight @ inputs + layers.last.bias)[0]


@torch.no_grad()
def logit(model: DINModel, history: list[int], target: int) -> float:
    """Both perceptrons on what the paper feeds them, one item of the history after the other."""
    query, user = model.items.weight[target], torch.zeros(6)
    for item in history:
        key = model.items.weight[item]
        user = user + perceptron(model.attention, torch.cat([query, key, query - key, query * key])) * key
    return float(perceptron(model.prediction, torch.cat([user, query, user * query])))


def test_attention_and_prediction_by_hand():
    """Width 1, items 2 and -1, target 2; a = relu(q + k + (q - k) + q k) / 2, logit = relu(u + q + u q) - 1."""
    model = DINModel(2, DINConfig(dim=1, hidden=(1, 1), dropout=0.0)).eval()
    with torch.no_grad():
        model.items.weight[:2] = torch.tensor([[2.0], [-1.0]])
        for layers in (model.attention, model.prediction):
            for layer in (layers.first, layers.second, layers.last):
                layer.weight.fill_(1.0)
        model.attention.last.weight.fill_(0.5)
        model.prediction.last.bias.fill_(-1.0)
    # item 0: a = (2 + 2 + 0 + 4) / 2 = 4; item 1: a = (2 - 1 + 3 - 2) / 2 = 1; u = 4 * 2 + 1 * -1 = 7
    assert model.scores(torch.tensor([[0, 1]]))[0, 0].item() == pytest.approx(7 + 2 + 14 - 1)


@pytest.mark.parametrize("kept", [ITEMS, 0])
@pytest.mark.parametrize(("pairs", "targets"), [(4096, 128), (8, 4)])  # one chunk; several, the last ones shorter
def test_scores_equal_a_loop_over_items(model, monkeypatch, kept, pairs, targets):
    monkeypatch.setattr(din, "KEPT_ITEMS", kept)
    monkeypatch.setitem(din.PAIRS, "cpu", pairs)
    monkeypatch.setitem(din.TARGETS, "cpu", targets)
    expected = [[logit(model, row, item) for item in range(ITEMS)] for row in ROWS]
    for rows in ([0, 1], [0, 1, 2, 3]):  # rows of the kept attention are filled in as they are asked for
        histories = torch.from_numpy(make_histories([ROWS[row] for row in rows]).padded(pad=ITEMS))
        np.testing.assert_allclose(model.scores(histories), np.array(expected)[rows], rtol=1e-4, atol=1e-5)


def test_training_scores_the_same_candidates_the_same(model):
    """Every position of both windows, three candidates each."""
    windows = [[3, 1, 4], [5]]
    inputs = torch.from_numpy(make_histories(windows).padded(pad=ITEMS))
    candidates = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 8], [8, 8, 0]])
    logits = model(inputs, inputs < ITEMS, candidates)
    histories = [[3], [3, 1], [3, 1, 4], [5]]
    expected = [[logit(model, h, int(c)) for c in row] for h, row in zip(histories, candidates, strict=True)]
    np.testing.assert_allclose(logits.detach(), expected, rtol=1e-4, atol=1e-5)


def test_kept_attention_goes_with_the_weights(model):
    histories = torch.tensor([[3, 1]])
    before = model.scores(histories)
    torch.nn.init.normal_(model.attention.first.weight)
    assert torch.equal(model.scores(histories), before)  # kept: it would be computed anew for each group otherwise
    model.eval()  # as training and loading say when they have changed weights
    assert not torch.allclose(model.scores(histories), before)


@pytest.fixture(scope="module")
def view(tiny: InteractionData) -> TrainView:
    return leave_one_out(tiny).train


def fit(view: TrainView, folder, scores, asked=None, **config) -> DIN:
    """Fitted under validation scores written out; a missing one stands for a kill."""
    scores = iter(scores)

    def validate(method, users=0):
        if asked is not None:
            asked.append(users)
        return next(scores)

    torch.manual_seed(0)
    method = DIN(DINConfig(**{"dim": 8, "hidden": (8, 4), "max_length": 8, "batch_positions": 60, **config}))
    method.fit(view, Context(0, "cpu", "tiny", Checkpoint(folder, every_s=0.0), ArtefactCache(folder), validate))
    return method


def test_resumed_training_is_bit_equal(view, tmp_path):
    scores = [0.1, 0.3, 0.2, 0.4, 0.5]
    whole = fit(view, tmp_path / "whole", scores, epochs=5)
    with pytest.raises(StopIteration):
        fit(view, tmp_path / "killed", scores[:3], epochs=5)
    resumed = fit(view, tmp_path / "killed", scores[3:], epochs=5)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert (whole.model.items.weight[-1] == 0).all()


def test_epochs_are_chosen_on_a_sample_of_users(view, tmp_path):
    asked: list[int] = []
    fit(view, tmp_path, [0.1], asked, epochs=1, validation_users=7)
    assert asked == [7]


def test_loss_of_an_untrained_model_by_hand(view):
    """Logits 0 for all: log 2, whatever the negatives."""
    config = DINConfig(dim=8, hidden=(8, 4))
    model = DINModel(view.num_items, config)
    torch.nn.init.zeros_(model.prediction.last.weight)
    for loss in din._step_losses(model, view, config, "cpu", np.random.default_rng(0)):
        assert loss.item() == pytest.approx(math.log(2))


def test_items_nobody_touched_have_finite_scores(tmp_path):
    view = leave_one_out(make_data([[0, 1, 2, 3, 4], [3, 1, 0, 2, 1]], num_items=8)).train
    method = fit(view, tmp_path, [0.1], epochs=1)
    assert np.isfinite(method.recommend(make_histories([[7, 6], []]), 8).scores).all()
