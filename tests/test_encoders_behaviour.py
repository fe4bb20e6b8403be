"""Behaviour vectors: only training interactions shape them, they repeat, a kill costs little, SVD by hand."""

import itertools
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
from genrec_bench.methods.encoders import behaviour
from genrec_bench.methods.encoders.behaviour import (
    behaviour_vectors,
    cooccurrence_svd,
    hit_share,
    likelihood,
    with_cold_items,
)
from genrec_bench.methods.scoring import Scorer

QUICK = {"epochs": 3, "max_length": 8, "batch_positions": 100}
SETTINGS = {
    "caser": QUICK,
    "din": {**QUICK, "hidden": [8, 4]},
    "gru4rec": QUICK,
    **{name: {"epochs": 3, "batch_size": 100} for name in ("lightgcn", "sgl", "xsimgcl")},
    "sasrec": QUICK,
    "svd": {},
}


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


@pytest.mark.parametrize("kind", behaviour.ENCODERS)
def test_held_out_items_never_shape_a_vector(kind, tiny, make_context):
    settings = SETTINGS[kind]
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


@pytest.mark.parametrize("kind", ["sasrec", "din", "lightgcn", "xsimgcl"])
@pytest.mark.parametrize("stage", ["part", "all"])
def test_a_kill_changes_nothing(view, make_context, stage, kind, monkeypatch):
    """Stopped in the choice of epochs or in the training on all: the same vectors, and finished parts stay finished."""
    monkeypatch.setattr(behaviour, "Checkpoint", lambda folder: Checkpoint(folder, every_s=0.0))
    # the last epoch is best, so that both stages have a second one
    rising = itertools.count(1.0)
    monkeypatch.setattr(behaviour, "likelihood", lambda *_: next(rising))
    monkeypatch.setattr(behaviour, "hit_share", lambda *_: next(rising))

    def vectors(context):
        return behaviour_vectors(view, context, kind, dim=8, settings=SETTINGS[kind])

    whole = vectors(make_context("whole"))

    def kill(**values):
        if values["stage"].endswith(stage) and values["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        vectors(make_context("killed", log=kill))
    seen = []
    again = make_context("killed", log=lambda **values: seen.append((values["stage"][-4:], values["epoch"])))
    assert np.array_equal(vectors(again), whole)
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


def test_hit_share_by_hand():
    """Items are liked by number, the last most. Of 13, those in the history are out of the ten; a repeat is a miss."""

    class ByNumber(Fixed):
        def score(self, histories):
            return torch.arange(13.0).expand(len(histories), 13)

    histories = make_histories([[1], [12], [12, 11, 10], [5]])
    assert hit_share(ByNumber(), histories, np.array([2, 2, 0, 5])) == 2 / 4
    assert hit_share(ByNumber(), histories, np.array([3, 1, 0, 12])) == 3 / 4


def test_a_costly_encoder_is_judged_on_the_same_sample(view, make_context, monkeypatch):
    asked = []

    def note(method, histories, targets):
        asked.append(histories.users.tolist())
        return float(len(asked))

    monkeypatch.setattr(behaviour, "likelihood", note)
    behaviour_vectors(view, make_context(), "din", dim=8, settings={**SETTINGS["din"], "validation_users": 7})
    assert len(asked) == 3
    assert asked[0] == asked[1] == asked[2] == sorted(set(asked[0]))
    assert len(asked[0]) == 7


def test_cold_items_borrow_from_similar_texts():
    """Item 3 lies near 0 and 1, item 4 near 2 and 1 (length does not count); items 0 to 2 keep what they have."""
    vectors = np.array([[1.0, 0.0], [3.0, 2.0], [5.0, 8.0], [99.0, 99.0], [-99.0, 99.0]])
    text = np.array([[1.0, 0.0], [2.0, 2.0], [0.0, 9.0], [4.0, 1.0], [0.1, 0.9]])
    trained = np.array([True, True, True, False, False])
    filled = with_cold_items(vectors, trained, text, neighbours=2)
    assert filled.tolist() == [[1, 0], [3, 2], [5, 8], [2, 1], [4, 5]]
    assert with_cold_items(vectors, trained, text)[3].tolist() == [3, pytest.approx(10 / 3)]  # all three of them
    assert with_cold_items(vectors, trained, np.zeros((5, 2)), neighbours=1)[4].tolist() == [1, 0]  # no text: the first
    assert with_cold_items(vectors, trained, None)[4].tolist() == [3, pytest.approx(10 / 3)]
    assert np.array_equal(with_cold_items(vectors, np.ones(5, dtype=bool), text), vectors)
    with pytest.raises(InputError, match="no item has training interactions"):
        with_cold_items(vectors, np.zeros(5, dtype=bool), text)


def test_cold_items_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    vectors, text, trained = rng.normal(size=(40, 3)), rng.normal(size=(40, 5)), rng.random(40) < 0.5
    whole = with_cold_items(vectors, trained, text)
    monkeypatch.setattr(behaviour, "ROWS", 3)
    np.testing.assert_allclose(with_cold_items(vectors, trained, text), whole)


def test_svd_gives_cosines_of_user_sets():
    """Users {0,1}, {0,1,2}, {2}: at full rank the inner products are exact. A repeat counts once; item 3 is unseen."""
    view = TrainView(3, make_data([[0]], num_items=4).items, make_histories([[0, 1, 0], [0, 1, 2], [2]]))
    vectors = cooccurrence_svd(view, dim=6)
    assert vectors.shape == (4, 6)
    expected = [[1, 1, 0.5, 0], [1, 1, 0.5, 0], [0.5, 0.5, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(vectors @ vectors.T, expected, atol=1e-6)


PLUGIN = """
from genrec_bench.methods.gru4rec import GRU4Rec
from genrec_bench.methods.registry import register


@register("my_gru")
class MyGRU(GRU4Rec):
    pass
"""


def test_any_next_item_recommender_gives_vectors(tiny, make_context, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    train = leave_one_out(tiny).train
    (tmp_path / "plugin.py").write_text(PLUGIN)
    registry.load_plugin(tmp_path / "plugin.py")
    ours = behaviour_vectors(train, make_context(), "gru4rec", dim=8, settings={**behaviour.QUICK, **QUICK})
    assert np.array_equal(behaviour_vectors(train, make_context(), "my_gru", 8, 0, {**behaviour.QUICK, **QUICK}), ours)
    settings = {**QUICK, "source": "tfidf_svd"}
    texts = behaviour_vectors(train, make_context(), "morec", dim=8, settings=settings)
    assert texts.shape == ours.shape
    renamed = replace(train, items=train.items.assign(title=[f"other {i}" for i in range(train.num_items)]))
    assert not np.array_equal(behaviour_vectors(renamed, make_context(), "morec", dim=8, settings=settings), texts)
    with pytest.raises(InputError, match="Unknown behaviour encoder 'popularity'"):
        behaviour_vectors(train, make_context(), "popularity")


@pytest.mark.parametrize("kind", behaviour.ENCODERS)
def test_users_with_one_item_are_enough(kind, make_context):
    view = TrainView(2, make_data([[0]], num_items=3).items, make_histories([[0], [2]]))
    vectors = behaviour_vectors(view, make_context(), kind, dim=4, settings=SETTINGS[kind])
    assert vectors.shape == (3, 4)
    assert np.isfinite(vectors).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "sasrek"}, "Unknown behaviour encoder 'sasrek'. Did you mean: sasrec"),
        ({"dim": 0}, "dim=0"),
        ({"settings": {"epoch": 3}}, "Unknown setting of sasrec 'epoch'. Did you mean: epochs"),
        ({"kind": "din", "settings": {"epoch": 3}}, "Unknown setting of din 'epoch'. Did you mean: epochs"),
        ({"kind": "lightgcn", "settings": {"layer": 3}}, "Unknown setting of lightgcn 'layer'. Did you mean: layers"),
        ({"kind": "lightgcn", "settings": {"layers": 0}}, "lightgcn.layers = 0"),
        ({"kind": "sgl", "settings": {"test_edges": "train+valid"}}, "sgl are learned with test_edges=train"),
        ({"kind": "svd", "settings": {"epochs": 3}}, "svd have no settings"),
        ({"dim": 7}, "heads=2 must divide dim=7"),
    ],
)
def test_bad_input(view, make_context, arguments, message):
    with pytest.raises(InputError, match=message):
        behaviour_vectors(view, make_context(), **arguments)
