"""Behaviour vectors: only training interactions shape them, they repeat, a kill costs little, SVD by hand."""

import numpy as np
import pytest
import torch
from conftest import make_data, make_histories

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.interactions import Histories, InteractionData, TrainView
from genrec_bench.datasets.splits import leave_one_out
from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.base import Context
from genrec_bench.methods.checkpoint import Checkpoint
from genrec_bench.methods.encoders import behaviour
from genrec_bench.methods.encoders.behaviour import behaviour_vectors, cooccurrence_svd, likelihood
from genrec_bench.methods.scoring import Scorer

QUICK = {"epochs": 3, "max_length": 8, "batch_positions": 100}


@pytest.fixture(scope="module")
def view(tiny: InteractionData) -> TrainView:
    return leave_one_out(tiny).train


@pytest.fixture
def make_context(tmp_path):
    def make(name="artefacts", seed=0, log=lambda **values: None):
        def refuse(method):
            raise AssertionError("a held-out item was asked for")

        return Context(seed, "cpu", "tiny", Checkpoint(None), ArtefactCache(tmp_path / name), refuse, log)

    return make


def poisoned(data: InteractionData) -> InteractionData:
    """Every user's two held-out items replaced by item 0."""
    items = data.sequences.items.copy()
    for end in data.sequences.offsets[1:]:
        items[end - 2 : end] = 0
    sequences = Histories(data.sequences.users, data.sequences.offsets, items)
    return InteractionData(data.name, data.user_ids, data.items, sequences, data.timestamps)


@pytest.mark.parametrize("kind", ["sasrec", "gru4rec", "svd"])
def test_held_out_items_never_shape_a_vector(kind, tiny, make_context):
    settings = {} if kind == "svd" else QUICK
    clean, dirty = (
        behaviour_vectors(leave_one_out(data).train, make_context(name), kind, dim=8, settings=settings)
        for name, data in (("clean", tiny), ("dirty", poisoned(tiny)))
    )
    assert clean.shape == (tiny.num_items, 8)
    assert clean.dtype == np.float32
    assert np.isfinite(clean).all()
    assert clean.std() > 0
    assert np.array_equal(clean, dirty)


def test_cache_hit_does_no_work_and_draws_no_random_numbers(view, make_context, monkeypatch):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = behaviour_vectors(view, make_context(seed=1), dim=8, settings=QUICK)
    assert torch.equal(torch.rand(3), expected)
    monkeypatch.setattr(behaviour, "_item_table", None)
    # the seed of a method is not the seed of its index
    assert np.array_equal(behaviour_vectors(view, make_context(seed=2), dim=8, settings=QUICK), first)


def test_another_input_is_another_stage(view, make_context):
    base = behaviour_vectors(view, make_context(), dim=8, settings=QUICK)
    assert not np.array_equal(behaviour_vectors(view, make_context(), dim=8, seed=1, settings=QUICK), base)
    assert not np.array_equal(behaviour_vectors(view, make_context(), "gru4rec", dim=8, settings=QUICK), base)
    assert behaviour_vectors(view, make_context(), dim=4, settings=QUICK).shape[1] == 4


class Killed(BaseException):
    pass


@pytest.mark.parametrize(("stage", "epoch"), [("part", 2), ("all", 2)])
def test_a_kill_changes_nothing(view, make_context, stage, epoch, monkeypatch):
    """Stopped in the choice of epochs or in the training on all: the same vectors, and finished parts stay finished."""
    monkeypatch.setattr(behaviour, "Checkpoint", lambda folder: Checkpoint(folder, every_s=0.0))
    whole = behaviour_vectors(view, make_context("whole"), dim=8, settings=QUICK)

    def kill(**values):
        if values["stage"].endswith(stage) and values["epoch"] == epoch:
            raise Killed

    with pytest.raises(Killed):
        behaviour_vectors(view, make_context("killed", log=kill), dim=8, settings=QUICK)
    seen = []
    again = make_context("killed", log=lambda **values: seen.append((values["stage"][-4:], values["epoch"])))
    assert np.array_equal(behaviour_vectors(view, again, dim=8, settings=QUICK), whole)
    assert seen[-1][0] == ":all"
    assert ("part", 1) not in seen
    assert not list((again.artefacts.root / "behaviour_training").iterdir())


def test_epochs_are_chosen_by_the_last_training_item(view, make_context, monkeypatch):
    """Likeliest after epoch 2 of 4: two epochs on all training interactions follow."""
    scores = iter([0.1, 0.3, 0.2, 0.25])
    asked = []

    def say(method, histories, targets):
        asked.append((histories, targets))
        return next(scores)

    monkeypatch.setattr(behaviour, "likelihood", say)
    epochs = []
    context = make_context(log=lambda **values: epochs.append((values["stage"].partition(":")[2], values["epoch"])))
    behaviour_vectors(view, context, dim=8, settings={**QUICK, "epochs": 4})
    assert epochs == [*(("part", i) for i in (1, 2, 3, 4)), ("all", 1), ("all", 2)]
    histories, targets = asked[0]
    assert [*histories.row(0), targets[0]] == view.sequences.row(0).tolist()


class Fixed(Scorer):
    def fit(self, train, context): ...
    def save(self, folder): ...
    def load(self, folder, train, context): ...

    def score(self, histories):
        return torch.log(torch.tensor([[0.5, 0.25, 0.25]])).expand(len(histories), 3)


def test_likelihood_by_hand():
    histories = make_histories([[1], [1, 2], [0]])
    assert likelihood(Fixed(), histories, np.array([0, 1, 0])) == pytest.approx((0.5 * 0.25 * 0.5) ** (1 / 3))


def test_svd_gives_cosines_of_user_sets():
    """Users {0,1}, {0,1,2}, {2}: at full rank the inner products are exact. A repeat counts once; item 3 is unseen."""
    view = TrainView(3, make_data([[0]], num_items=4).items, make_histories([[0, 1, 0], [0, 1, 2], [2]]))
    vectors = cooccurrence_svd(view, dim=6)
    assert vectors.shape == (4, 6)
    expected = [[1, 1, 0.5, 0], [1, 1, 0.5, 0], [0.5, 0.5, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(vectors @ vectors.T, expected, atol=1e-6)


def test_users_with_one_item_are_enough(make_context):
    view = TrainView(2, make_data([[0]], num_items=3).items, make_histories([[0], [2]]))
    assert behaviour_vectors(view, make_context(), dim=4, settings=QUICK).shape == (3, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "sasrek"}, "Unknown behaviour encoder 'sasrek'. Did you mean: sasrec"),
        ({"dim": 0}, "dim=0"),
        ({"settings": {"epoch": 3}}, "Unknown setting of sasrec 'epoch'. Did you mean: epochs"),
        ({"kind": "svd", "settings": {"epochs": 3}}, "svd have no settings"),
        ({"dim": 7}, "heads=2 must divide dim=7"),
    ],
)
def test_bad_input(view, make_context, arguments, message):
    with pytest.raises(InputError, match=message):
        behaviour_vectors(view, make_context(), **arguments)
