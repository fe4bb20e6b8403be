"""Further pretraining on lists of titles: what is read, what it changes, and that it is learned once."""

import numpy as np
import pytest
import torch
from conftest import make_data, make_histories
from test_candidates_language import NAMES, SMALL

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.interactions import TrainView
from genrec_bench.methods import registry
from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.base import Context
from genrec_bench.methods.candidates import adaptation as module
from genrec_bench.methods.candidates.adaptation import written_out
from genrec_bench.methods.candidates.wording import NOUNS, TEMPLATES
from genrec_bench.methods.checkpoint import Checkpoint
from genrec_bench.methods.language.backbone import tiny_llama
from genrec_bench.methods.language.training import TrainingDiverged
from genrec_bench.methods.language.vocabulary import byte_tokenizer, word_tokenizer

ADAPTATION = {"epochs": 2, "positions": 64, "learning_rate": 0.02, "averaging": 0.5}


@pytest.fixture
def folder(tmp_path):
    """A model that counts as pretrained, whatever its name."""
    wordings = [part.format(**NOUNS["items"]._asdict()) for template in TEMPLATES for part in template]
    tokenizer = byte_tokenizer([*NAMES, *wordings] * 2)
    tiny_llama(len(tokenizer), layers=1, dim=32, heads=2, feedforward=64).save_pretrained(tmp_path / "tiny-random")
    tokenizer.save_pretrained(tmp_path / "tiny-random")
    return str(tmp_path / "tiny-random")


def train_view():
    data = make_data([(0, 1, 2, 3, 4)] * 8 + [(5, 6, 7)] * 4, num_items=len(NAMES), titles=NAMES)
    return TrainView(data.num_users, data.items, data.sequences)


def context(tmp_path, seed=0, log=lambda **values: None):
    cache = ArtefactCache(tmp_path / "artefacts")
    return Context(seed, "cpu", "base", Checkpoint(None), cache, lambda method, users=0: 0.5, log)


def made(name, folder, **config):
    small = {**SMALL, "backbone": folder, "adaptation": ADAPTATION, **config}
    return registry.get(name)(registry.configure(name, small))


def weights(method):
    return {name: value.clone() for name, value in method.model.get_base_model().state_dict().items()}


def test_lists_hold_every_line_in_order_and_part_no_title():
    lines = [[7, 1], [8, 8, 8, 1], [9, 9, 1]]
    sequences = make_histories([[0, 1, 2, 0, 1], [2]])
    cuts = set()
    for seed in range(20):
        lists = written_out(lines, sequences, 9, np.random.default_rng(seed))
        assert all(text[0] == 1 and text[-1] == 1 and 1 < len(text) <= 9 for text in lists)
        assert lists[-1] == [1, 9, 9, 1]
        text = [token for text in lists[:-1] for token in text[1:]]
        assert text == [token for item in (0, 1, 2, 0, 1) for token in lines[item]]
        cuts.add(tuple(map(len, lists)))
    assert len(cuts) > 1


def test_a_line_that_has_no_room_is_a_list_of_its_own():
    lists = written_out([[5] * 10 + [1], [6, 1]], make_histories([[1, 0, 1]]), 4, np.random.default_rng(0))
    assert lists == [[1, 6, 1], [1, *[5] * 10, 1], [1, 6, 1]]


def test_it_is_learned_once_and_foresees_titles(folder, tmp_path, monkeypatch):
    events = []
    first = made("llm_zero_shot", folder)
    first.fit(train_view(), context(tmp_path, log=lambda **values: events.append(values)))
    losses = [event["loss"] for event in events if event.get("stage") == "adaptation" and "loss" in event]
    assert len(losses) == 2
    assert losses[1] < losses[0]
    before = made("llm_zero_shot", folder, adaptation={"epochs": 0})
    before.fit(train_view(), context(tmp_path))
    changed = [name for name, value in weights(before).items() if not torch.equal(value, weights(first)[name])]
    assert changed
    assert all("_proj" in name for name in changed)
    assert first.parameters() == before.parameters()
    monkeypatch.setattr(module, "_learn", lambda *given: pytest.fail("learned again"))
    other = made("tallrec", folder, epochs=1, examples=1)
    monkeypatch.setattr(type(other), "tune", lambda self, train, context: None)
    other.fit(train_view(), context(tmp_path, seed=3))
    merged = {name.replace("base_layer.", ""): value for name, value in weights(other).items()}
    for name, value in weights(first).items():
        assert torch.equal(value, merged[name]), name


def test_a_saved_model_has_it_with_it(folder, tmp_path, monkeypatch):
    histories, candidates = make_histories([[0, 1, 2], [5]]), np.array([[3, 6, 8, 9], [6, 1, 2, 3]])
    for name in ("llm_zero_shot", "tallrec"):
        config = {"decode": "loglik"} | ({"epochs": 1, "examples": 1} if name == "tallrec" else {})
        method = made(name, folder, **config)
        method.fit(train_view(), context(tmp_path))
        (tmp_path / name).mkdir()
        method.save(tmp_path / name)
        with monkeypatch.context() as patch:
            patch.setattr(module, "_learn", lambda *given: pytest.fail("learned again"))
            again = made(name, folder, **config)
            again.load(tmp_path / name, train_view(), context(tmp_path / "elsewhere"))
        expected = method.choose(histories, candidates)
        assert np.array_equal(again.choose(histories, candidates).scores, expected.scores)


def test_a_killed_run_goes_on_where_it_stood(folder, tmp_path, monkeypatch):
    whole = made("llm_zero_shot", folder)
    whole.fit(train_view(), context(tmp_path / "whole"))
    plain, saves = Checkpoint.save, []

    def killed(self, state):
        plain(self, state)
        saves.append(state["progress"]["total_steps"])
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "due", lambda self: True)
    monkeypatch.setattr(Checkpoint, "save", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            made("llm_zero_shot", folder).fit(train_view(), context(tmp_path / "killed"))
    monkeypatch.setattr(Checkpoint, "save", plain)
    monkeypatch.setattr(Checkpoint, "earlier_s", property(lambda self: 1000.0 * (self._elapsed_before_s > 0)))
    resumed = made("llm_zero_shot", folder)
    resumed.fit(train_view(), context(tmp_path / "killed"))
    assert saves == [1, 2]
    (cost,) = (tmp_path / "killed" / "artefacts" / "adaptation").glob("*/seconds.json")
    assert 1000 < float(cost.read_text()) < 2000  # with what the killed attempts took
    assert not list((tmp_path / "killed" / "artefacts" / "adaptation_training").iterdir())
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_random_weights_have_no_pretraining_to_go_on_with(tmp_path):
    """Said before a recommender is trained for its item table."""
    given = Context(0, "cpu", "tiny", Checkpoint(None), ArtefactCache(tmp_path), lambda method, users=0: 0.5)
    for name in ("llm_zero_shot", "llara"):
        with pytest.raises(InputError, match=r"adaptation\.epochs: tier tiny has random weights"):
            made(name, None).fit(train_view(), given)
    assert not list(tmp_path.iterdir())


def test_a_list_must_fit_the_model_and_have_lines(folder, tmp_path):
    long = {**ADAPTATION, "positions": 10**6}
    with pytest.raises(InputError, match=r"adaptation\.positions=1000000, and the model reads"):
        made("llm_zero_shot", folder, adaptation=long).fit(train_view(), context(tmp_path))
    word_tokenizer([*NAMES, "users chose"]).save_pretrained(folder)
    alone = {"template": 6, "decode": "trie"}
    for config in ({}, {**alone, "adaptation": {"epochs": 0}}):
        with pytest.raises(InputError, match="drops the end of a line"):
            made("llm_zero_shot", folder, **config).fit(train_view(), context(tmp_path))


def test_a_model_that_lost_its_adaptation_is_refused(folder, tmp_path, monkeypatch):
    """Nothing is learned in its stead."""
    bare = made("tallrec", folder, adaptation={"epochs": 0}, epochs=1, examples=1)
    bare.fit(train_view(), context(tmp_path))
    (tmp_path / "saved").mkdir()
    bare.save(tmp_path / "saved")
    monkeypatch.setattr(module, "_learn", lambda *given: pytest.fail("learned again"))
    with pytest.raises(InputError, match="An adaptation of another model"):
        made("tallrec", folder, epochs=1, examples=1).load(tmp_path / "saved", train_view(), context(tmp_path))


def test_a_divergence_names_the_adaptations_own_rate(folder, tmp_path):
    wild = {**ADAPTATION, "learning_rate": 1e30}
    with pytest.raises(TrainingDiverged, match=r"^adaptation: .*\(adaptation\.learning_rate\)$"):
        made("llm_zero_shot", folder, adaptation=wild).fit(train_view(), context(tmp_path))


def test_off_it_is_no_part_of_a_configs_identity():
    off, on = (registry.configure("llara", {"adaptation": {"epochs": epochs}}) for epochs in (0, 1))
    assert "adaptation" not in off.identity()
    assert on.identity()["adaptation"]["epochs"] == 1
    as_it_is = {"adaptation": {"epochs": 0}}
    assert made("llm_zero_shot", None, **as_it_is).published_variant() is None
    assert made("llm_zero_shot", None).published_variant() == "not printed"
    assert made("llm_zero_shot", None, **as_it_is, template=6, decode="trie").published_variant() == "not printed"
