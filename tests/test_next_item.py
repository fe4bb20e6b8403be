"""Losses against autograd and by hand, windows and batches, causal models, and training that resumes exactly."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from conftest import make_data, make_histories
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from genrec_bench.datasets.interactions import InteractionData, TrainView
from genrec_bench.datasets.splits import leave_one_out
from genrec_bench.methods import losses, next_item
from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.base import Context
from genrec_bench.methods.checkpoint import Checkpoint
from genrec_bench.methods.dropout import dropout
from genrec_bench.methods.gru4rec import GRU4Rec, GRU4RecConfig, GRU4RecModel
from genrec_bench.methods.next_item import batches, next_item_scores, windows
from genrec_bench.methods.sasrec import SASRec, SASRecConfig, SASRecModel

MODELS = [
    pytest.param(partial(SASRecModel, 9, SASRecConfig(dim=8, max_length=6, feedforward=16)), id="sasrec"),
    pytest.param(partial(GRU4RecModel, 9, GRU4RecConfig(dim=8, max_length=6, hidden=12, layers=2)), id="gru4rec"),
]
PAD = 9


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("chunk", [6_000_000, 64 * 50])  # one chunk; three, the last one shorter
def test_full_softmax_is_cross_entropy(monkeypatch, dtype, tolerance, chunk):
    monkeypatch.setattr(losses, "CHUNK_LOGITS", chunk)
    torch.manual_seed(0)
    values = torch.randn(150, 16), torch.randn(50, 16)
    targets = torch.randint(0, 50, (150,))
    hidden, table = (value.clone().requires_grad_() for value in values)
    expected_hidden, expected_table = (value.clone().requires_grad_() for value in values)
    loss = losses.full_softmax(hidden, table, targets, dtype)
    expected = functional.cross_entropy(expected_hidden @ expected_table.T, targets)
    (2.5 * loss).backward()
    (2.5 * expected).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    for own, theirs in ((hidden.grad, expected_hidden.grad), (table.grad, expected_table.grad)):
        assert own.dtype == torch.float32
        assert (own - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_full_softmax_of_an_impossible_target_is_finite():
    hidden, table = torch.tensor([[200.0]], requires_grad=True), torch.tensor([[1.0], [-1.0]], requires_grad=True)
    loss = losses.full_softmax(hidden, table, torch.tensor([1]))
    loss.backward()
    assert math.isfinite(loss.item())
    assert loss.item() > 60
    assert hidden.grad.item() == pytest.approx(2.0)


HIDDEN = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
TABLE = torch.tensor([[1.0, 1.0], [2.0, 0.0], [0.0, 0.5]])


def test_sampled_softmax_by_hand():
    """Row 0: target 1 scores 2, negatives 0 and 2 score 1 and 0. Row 1: target 0 scores 2; its own twin is left out."""
    loss = losses.sampled_softmax(HIDDEN, TABLE, torch.tensor([1, 0]), torch.tensor([0, 2]))
    first = -2 + math.log(math.exp(2) + math.exp(1) + math.exp(0))
    second = -2 + math.log(math.exp(2) + math.exp(1))
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-6)


def test_binary_by_hand():
    loss = losses.binary(HIDDEN, TABLE, torch.tensor([1, 0]), torch.tensor([0, 2]))
    first = math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))
    second = math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-6)


ROWS = st.lists(st.lists(st.integers(0, 8), max_size=20), min_size=1, max_size=6)


@given(ROWS, st.integers(1, 6), st.integers(0, 9))
def test_windows_cover_every_target_once(rows, max_length, seed):
    histories = make_histories(rows)
    starts, ends = windows(histories, max_length, np.random.default_rng(seed))
    targets = sorted(at + 1 for start, end in zip(starts, ends, strict=True) for at in range(start, end))
    offsets = histories.offsets
    assert targets == [at for row in range(len(rows)) for at in range(offsets[row] + 1, offsets[row + 1])]
    assert all(0 < end - start <= max_length for start, end in zip(starts, ends, strict=True))
    row_of = np.searchsorted(offsets, starts, side="right")
    assert (row_of == np.searchsorted(offsets, ends, side="right")).all()  # none reaches into the next user


def test_long_sequences_are_cut_elsewhere_each_epoch():
    histories = make_histories([list(range(40))])
    cuts = {tuple(windows(histories, 10, np.random.default_rng([0, epoch]))[0].tolist()) for epoch in range(30)}
    assert len(cuts) > 5


@given(ROWS, st.integers(1, 6), st.integers(1, 30), st.integers(0, 9))
def test_batches_hold_every_target_with_its_input(rows, max_length, positions, seed):
    histories = make_histories(rows)
    expected = sorted((a, b) for row in rows for a, b in itertools.pairwise(row))
    found, sizes = [], []
    for inputs, mask, targets in batches(histories, max_length, positions, PAD, np.random.default_rng(seed)):
        assert (inputs == PAD).logical_not().equal(mask)
        assert (mask.long().diff(dim=1) <= 0).all()  # padding on the right only
        assert mask.shape[1] == mask.sum(1).max()
        found += zip(inputs[mask].tolist(), targets.tolist(), strict=True)
        sizes.append(len(targets))
    assert sorted(found) == expected
    assert all(size < positions + max_length for size in sizes)
    assert len(sizes) <= math.ceil(len(expected) / positions)


def test_batches_are_shuffled_and_repeatable():
    histories = make_histories([[i % 9] * (2 + i % 5) for i in range(60)])

    def epoch(n):
        return [targets.tolist() for _, _, targets in batches(histories, 6, 20, PAD, np.random.default_rng([0, n]))]

    assert epoch(0) == epoch(0)
    assert epoch(0) != epoch(1)
    lengths = [len(inputs[0]) for inputs, _, _ in batches(histories, 6, 20, PAD, np.random.default_rng(0))]
    assert lengths != sorted(lengths)


@pytest.mark.parametrize("build", MODELS)
def test_models_are_causal(build):
    """What comes later at the same length changes no earlier state."""
    torch.manual_seed(0)
    model = build().eval()
    items = torch.tensor([[0, 1, 2, 3, 4]])
    before = model(items)
    for changed_from in (1, 3, 4):
        other = items.clone()
        other[0, changed_from:] = 8
        after = model(other)
        assert torch.equal(before[:, :changed_from], after[:, :changed_from])
        assert not torch.allclose(before[:, changed_from:], after[:, changed_from:], atol=1e-4)


@pytest.mark.parametrize("build", MODELS)
def test_padding_changes_nothing(build):
    torch.manual_seed(0)
    model = build().eval()
    rows = [[3], [0, 1, 2], [5, 6, 7, 8, 1, 0]]
    together = next_item_scores(model, make_histories(rows), 6)
    alone = torch.cat([next_item_scores(model, make_histories([row]), 6) for row in rows])
    assert torch.allclose(together, alone, atol=1e-6)
    assert together.shape == (3, 9)


@pytest.mark.parametrize("build", MODELS)
def test_only_the_most_recent_items_are_looked_at(build):
    torch.manual_seed(0)
    model = build().eval()
    long = next_item_scores(model, make_histories([[1, 8, 7, 0, 1, 2, 3, 4, 5]]), 6)
    assert torch.equal(long, next_item_scores(model, make_histories([[0, 1, 2, 3, 4, 5]]), 6))
    assert torch.isfinite(next_item_scores(model, make_histories([[], [1]]), 6)).all()


@pytest.mark.parametrize("count", [1, 100_003])
def test_dropout_rate_and_expectation(count):
    torch.manual_seed(0)
    x = torch.full((count,), 3.0)
    assert dropout(x, 0.3, training=False) is x
    assert dropout(x, 0.0, training=True) is x
    dropped = dropout(x, 0.3, training=True)
    kept = dropped[dropped != 0]
    assert torch.allclose(kept, torch.tensor(3 * 256 / (256 - 77)))  # 77 / 256 is nearest to 0.3
    if count > 1:
        assert (dropped == 0).float().mean().item() == pytest.approx(77 / 256, abs=0.005)
        assert dropped.mean().item() == pytest.approx(3.0, abs=0.05)
        assert not torch.equal(dropped, dropout(x, 0.3, training=True))
    assert torch.isfinite(dropout(x, 0.999, training=True)).all()


def test_dropout_passes_gradients_of_kept_elements():
    torch.manual_seed(0)
    x = torch.ones(1000, requires_grad=True)
    y = dropout(x, 0.5, training=True)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


class Killed(BaseException):
    pass


def train(cls, config, view, folder, scores, start=0, kill_at=None, seed=0):
    """Fit under validation scores written out; "dies" in the validation of epoch ``kill_at``."""
    epoch = [start]

    def validate(method, users=0):
        epoch[0] += 1
        if epoch[0] == kill_at:
            raise Killed
        return scores[epoch[0] - 1]

    torch.manual_seed(seed)
    method = cls(config)
    context = Context(seed, "cpu", "tiny", Checkpoint(folder, every_s=0.0), ArtefactCache(folder), validate)
    method.fit(view, context)
    return method, epoch[0]


@pytest.fixture(scope="module")
def view(tiny: InteractionData) -> TrainView:
    return leave_one_out(tiny).train


@pytest.mark.parametrize("loss", ["ce", "sampled_ce", "bce"])
@pytest.mark.parametrize(("cls", "config"), [(SASRec, SASRecConfig), (GRU4Rec, GRU4RecConfig)])
def test_resumed_training_is_bit_equal(cls, config, loss, view, tmp_path):
    """Twice killed, once between checkpoints: random state, optimiser, order and best weights all come back."""
    settings = config(dim=8, epochs=5, loss=loss, negatives=5, max_length=8, batch_positions=60)
    scores = [0.1, 0.3, 0.2, 0.4, 0.5]  # the last epoch is best: its weights hold all that went before
    whole, _ = train(cls, settings, view, tmp_path / "whole", scores)
    for start, kill_at in ((0, 3), (2, 5)):
        with pytest.raises(Killed):
            train(cls, settings, view, tmp_path / "killed", scores, start, kill_at, seed=0)
    resumed, asked = train(cls, settings, view, tmp_path / "killed", scores, start=4)
    assert asked == 5  # one epoch was left
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_every_epoch_has_an_order_of_its_own(view, tmp_path, monkeypatch):
    orders = []

    def noted(*arguments):
        orders.append([])
        for inputs, mask, targets in batches(*arguments):
            orders[-1] += targets.tolist()
            yield inputs, mask, targets

    monkeypatch.setattr(next_item, "batches", noted)
    for seed, folder in ((0, "a"), (0, "b"), (1, "c")):
        settings = SASRecConfig(dim=8, epochs=2, max_length=8)
        train(SASRec, settings, view, tmp_path / folder, [0.1, 0.2], seed=seed)
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[:2] == orders[2:4]
    assert orders[4] not in orders[:2]


def test_best_epoch_is_kept_and_patience_ends_training(view, tmp_path):
    settings = SASRecConfig(dim=8, epochs=50, patience=3, max_length=8)
    scores = [0.1, 0.5, 0.4, 0.5, 0.3, 0.9]  # an equal score is no improvement
    early, asked = train(SASRec, settings, view, tmp_path / "a", scores)
    assert asked == 5
    two, _ = train(SASRec, settings.model_copy(update={"epochs": 2}), view, tmp_path / "b", scores)
    assert torch.equal(early.model.items.weight, two.model.items.weight)
    assert not early.model.training


def test_moving_average_by_hand(view, tmp_path):
    """One batch an epoch: after two, the kept weights are (a w1 + w2) / (a + 1)."""
    settings = SASRecConfig(dim=8, max_length=8, batch_positions=10**6, epochs=2)
    steps = []
    for epochs in (1, 2):
        one = settings.model_copy(update={"averaging": 0.0, "epochs": epochs})
        steps.append(train(SASRec, one, view, tmp_path / f"w{epochs}", [0.1, 0.2])[0].model.items.weight)
    kept, _ = train(SASRec, settings.model_copy(update={"averaging": 0.7}), view, tmp_path / "kept", [0.1, 0.2])
    w1, w2 = steps
    assert torch.allclose(kept.model.items.weight, (0.7 * w1 + w2) / 1.7, atol=1e-6)
    assert not torch.allclose(w1, w2)


def test_another_seed_is_another_model(view, tmp_path):
    settings = SASRecConfig(dim=8, epochs=1, max_length=8)
    first, _ = train(SASRec, settings, view, tmp_path / "a", [1.0])
    second, _ = train(SASRec, settings, view, tmp_path / "b", [1.0], seed=1)
    assert not torch.equal(first.model.items.weight, second.model.items.weight)


def test_nothing_to_learn_from(tmp_path):
    """Three interactions a user leave one for training: no item follows another, yet there is an answer."""
    data = make_data([[0, 1, 2], [3, 4, 5], [1, 0, 4]])
    split = leave_one_out(data)
    method, _ = train(SASRec, SASRecConfig(dim=8, epochs=2), split.train, tmp_path, [0.1, 0.1])
    assert np.isfinite(method.recommend(split.test.histories, 6).scores).all()
