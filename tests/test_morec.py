"""MoRec: scores are text vectors, projection and SASRec put together; texts stay fixed and travel with a kept model."""

import itertools

import numpy as np
import pytest
import torch
from conftest import make_data, make_histories
from test_methods import fitted

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.events import item_table
from genrec_bench.datasets.interactions import TrainView
from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.base import Context
from genrec_bench.methods.checkpoint import Checkpoint
from genrec_bench.methods.encoders import text
from genrec_bench.methods.encoders.text import text_vectors, tfidf_svd
from genrec_bench.methods.morec import MoRec, MoRecConfig, centred
from genrec_bench.methods.sasrec import SASRec, SASRecConfig, SASRecModel

SMALL = {"source": "tfidf_svd", "dim": 8, "feedforward": 16, "epochs": 2, "max_length": 6}
TITLES = ["red car", "red bike", "blue boat", "blue car", "green bike"]
ROWS = [[0, 1, 2, 3, 4], [4, 3, 2], [1, 0]]


def view(titles=TITLES, categories=()) -> TrainView:
    data = make_data(ROWS, num_items=len(titles))
    items = item_table(
        data.items["item_id"].tolist(), list(titles), [""] * len(titles), list(categories) or [""] * len(titles)
    )
    return TrainView(data.num_users, items, data.sequences)


def test_scores_are_sasrecs_on_projected_texts():
    method = fitted("morec", view(), **SMALL)
    texts = torch.from_numpy(centred(tfidf_svd(TITLES)))
    weights = method.model.state_dict()
    table = texts @ weights.pop("items.project.weight").T + weights["items.project.bias"]
    twin = SASRec(SASRecConfig(**{key: value for key, value in SMALL.items() if key != "source"}))
    twin.model = SASRecModel(5, twin.config).eval()
    padding = weights.pop("items.project.bias")  # what the text zero is projected to
    twin.model.load_state_dict({**weights, "items.weight": torch.cat([table, padding[None]])})
    histories = make_histories([[0, 1, 2, 3, 4, 0, 1], [2], []])
    assert torch.allclose(method.score(histories), twin.score(histories), atol=1e-5)
    assert torch.allclose(method.model.item_table(), table, atol=1e-6)


def test_texts_stay_fixed_and_their_projection_learns():
    rising = itertools.count(1.0)  # the last epoch is best
    before, after = (
        fitted("morec", view(), lambda *_, **__: next(rising), **{**SMALL, "epochs": epochs}) for epochs in (1, 3)
    )
    assert torch.equal(before.model.items.texts, after.model.items.texts)
    assert not before.model.items.texts.requires_grad
    assert not torch.equal(before.model.items.project.weight, after.model.items.project.weight)
    assert before.parameters()[0] == sum(value.numel() for value in before.model.state_dict().values())


def test_equal_titles_score_alike():
    scores = fitted("morec", view(["red car", "red car", "blue boat", "blue car", "bike"]), **SMALL).score(
        make_histories([[2, 3]])
    )
    assert scores[0, 0] == pytest.approx(scores[0, 1].item(), rel=1e-5)
    assert (scores[0, 1:].sort().values.diff() > 1e-5).all()


def test_centred_by_hand():
    found = centred(np.array([[1.0, 5.0], [3.0, 5.0], [5.0, 5.0], [7.0, 5.0]], np.float32))
    assert found.tolist() == [[-1.5, 0], [-0.5, 0], [0.5, 0], [1.5, 0]]
    assert not centred(np.ones((3, 2), np.float32)).any()


def test_a_kept_model_needs_no_encoder(tmp_path, monkeypatch):
    method = fitted("morec", view(), **SMALL)
    method.save(tmp_path)
    monkeypatch.setattr(text, "text_vectors", None)
    context = Context(1, "cpu", "tiny", Checkpoint(None), ArtefactCache(tmp_path / "none"), lambda method, users=0: 0.0)
    loaded = MoRec(method.config)
    loaded.load(tmp_path, view(), context)
    histories = make_histories(ROWS)
    assert torch.equal(loaded.score(histories), method.score(histories))


def test_what_is_read_of_an_item(monkeypatch):
    asked = []

    def noted(items, source, context):
        asked.append((text.item_texts(items), source))
        return text_vectors(items, source, context)

    monkeypatch.setattr(text, "text_vectors", noted)
    train = view(categories=["a|b"] * 5)
    fitted("morec", train, **SMALL)
    fitted("morec", train, **SMALL, text="all")
    assert asked == [(TITLES, "tfidf_svd"), ([f"{title}; a, b" for title in TITLES], "tfidf_svd")]
    assert train.items["categories"].tolist() == ["a|b"] * 5


@pytest.mark.parametrize(
    ("titles", "settings", "message"),
    [
        ([""] * 5, {}, r"^morec: 5 of 5 items have no title: .* What would work: text=all.*; a data set.*; sasrec"),
        (["", "", "", "a", "b"], {}, r"^morec: 3 of 5 items have no title"),
        ([""] * 5, {"text": "all"}, r"no title, category or description.* What would work: a data set with titles"),
    ],
)
def test_items_without_titles(titles, settings, message):
    with pytest.raises(InputError, match=message):
        fitted("morec", view(titles), **SMALL, **settings)


def test_categories_stand_in_where_asked():
    method = fitted("morec", view([""] * 5, [*"abc", "a b", "b c"]), **SMALL, text="all")
    assert torch.isfinite(method.score(make_histories(ROWS))).all()


def test_unknown_sources_are_named():
    with pytest.raises(InputError, match=r"Unknown text source 'minilmm'\. Did you mean: minilm"):
        fitted("morec", view(), **{**SMALL, "source": "minilmm"})


def test_config_is_sasrecs():
    assert set(SASRecConfig.model_fields) < set(MoRecConfig.model_fields)
