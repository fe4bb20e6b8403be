"""AGRec: its parts alone at the ends of alpha, tuning on validation only, what the graph may suggest, bad input."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_histories, rows_of

from genrec_bench.benchmark.evaluate import evaluate
from genrec_bench.benchmark.protocols import Full, selection_value
from genrec_bench.datasets import synthetic
from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.interactions import Histories
from genrec_bench.datasets.splits import leave_one_out
from genrec_bench.methods import registry
from genrec_bench.methods.agrec import ALPHAS, AGRec
from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.base import Context, Ranking
from genrec_bench.methods.checkpoint import Checkpoint

pytest.importorskip("transformers")

MODEL = {
    "architecture": "decoder_only", "bf16": False, "layers": 1, "width": 16, "heads": 1, "feedforward": 32, "epochs": 2,
    "max_history": 4, "batch_tokens": 4_000, "loss_over": "trie", "beam": 12,
    "index": {"levels": 2, "codes": 8, "hidden": [16], "dim": 8, "epochs": 2},
}  # fmt: skip
LM = {"method": "tiger", "settings": MODEL}
OFFICIAL = {"preset": "official", "lm": {"method": "tiger", "settings": {**MODEL, "loss_over": "vocabulary"}}}
GRAPH = {"encoder": "lightgcn", "settings": {"dim": 8, "epochs": 3, "learning_rate": 0.01}}
DATA = synthetic.generate(num_users=60, num_items=40, seed=3, min_length=6, max_length=12, name="tiny")
SPLIT = leave_one_out(DATA)


def judge(method, users=0):
    rules = Full()
    return selection_value(rules, evaluate(method, SPLIT.valid, rules, DATA.num_items).ranks)


class Kit:
    """Fits methods that share an artefact cache."""

    def __init__(self, folder: Path):
        self.folder, self.events = folder, []
        self.run: Path | None = None  # where checkpoints are kept, after each epoch

    def context(self, validate=judge) -> Context:
        torch.manual_seed(0)
        artefacts = ArtefactCache(self.folder / "artefacts")
        return Context(
            0, "cpu", "tiny", Checkpoint(self.run, 0.0), artefacts, validate, lambda **event: self.events.append(event)
        )

    def fit(self, name="agrec", train=SPLIT.train, validate=judge, **config):
        method = registry.get(name)(registry.configure(name, config))
        method.fit(train, self.context(validate))
        return method

    def agrec(self, **config) -> AGRec:
        return self.fit(**{"lm": LM, "graph": GRAPH, **config})


@pytest.fixture
def kit(tmp_path):
    return Kit(tmp_path)


def same(one: Ranking, other: Ranking) -> bool:
    return np.array_equal(one.items, other.items) and np.array_equal(one.scores, other.scores)


@pytest.mark.parametrize("config", [{"alpha": 0.0}, {"graph": None}])
def test_without_a_graph_it_is_the_language_model_bit_for_bit(kit, config):
    asked = SPLIT.test.histories
    alone = kit.fit("tiger", **MODEL).recommend(asked, 10)
    assert same(kit.agrec(**config).recommend(asked, 10), alone)
    assert same(Kit(kit.folder / "anew").agrec(**config).recommend(asked, 10), alone)  # trained within AGRec


@pytest.mark.parametrize("config", [{"alpha": 1.0}, {"lm": None}])
@pytest.mark.parametrize("mask_seen", [False, True])
def test_without_a_language_model_it_is_the_graphs_ranking(kit, config, mask_seen):
    asked = replace(SPLIT.test.histories, mask_seen=mask_seen)
    graph = kit.fit("lightgcn", **GRAPH["settings"])
    for suggest_seen in (True, False):
        alone = graph.recommend(replace(asked, mask_seen=mask_seen or not suggest_seen), 10)
        found = kit.agrec(**config | {"graph": {**GRAPH, "mask_seen": not suggest_seen}}).recommend(asked, 10)
        assert same(found, alone)


@pytest.mark.parametrize("preset", [{}, OFFICIAL], ids=["paper", "official"])
def test_alpha_is_the_validations_choice_and_the_prompts_are_read_once_for_all_of_them(kit, preset, monkeypatch):
    from genrec_bench.methods.decoding.causal import CausalTokens

    method = kit.agrec(**preset, alpha=0.5)
    curve = [judge(at) for at in (kit.agrec(**preset, alpha=alpha) for alpha in ALPHAS)]
    read: list[int] = []
    start = CausalTokens.start
    monkeypatch.setattr(
        CausalTokens,
        "start",
        lambda self, prompt, room: (read.append(len(prompt.tokens)), start(self, prompt, room))[1],
    )
    method = kit.agrec(**preset)
    assert sum(read) == 2 * len(SPLIT.valid.targets)  # alpha 0 is the model's own search, all others share one
    assert method.alpha == ALPHAS[int(np.argmax(curve))]
    noted = [event for event in kit.events if event.get("stage") == "alpha"]
    assert list(noted[0].values())[1:] == pytest.approx(curve)


def test_the_mixture_answers_as_its_parts_suggest(kit):
    """With much weight on the graph its items lead; with little, the model's."""
    asked = SPLIT.test.histories
    method = kit.agrec(alpha=0.9, n=5)
    suggested, scores = method.suggestions(asked)
    assert (np.diff(scores, axis=1) <= 0).all()
    leaning = method.recommend(asked, 5).items
    model = method.rankings(asked, 5, [0.0])[0].items
    share = [
        np.mean([len(set(a) & set(b)) for a, b in zip(answer, suggested, strict=True)]) for answer in (leaning, model)
    ]
    assert share[0] > share[1] + 1


def test_several_rows_train_their_parts_once(kit):
    kit.agrec(alpha=0.3)
    trained = [event for event in kit.events if "epoch" in event]
    assert {"tiger", "lightgcn"} <= {event["stage"] for event in trained}
    assert {event["stage"] for event in trained if event.get("leads")} == {"tiger"}
    kit.agrec(alpha=0.4, n=20)
    assert len([event for event in kit.events if "epoch" in event]) == len(trained)
    kit.agrec(alpha=0.3, graph={"encoder": "item_knn"})
    assert len([event for event in kit.events if "epoch" in event]) == len(trained)


class Killed(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize("kill_at", [2, 4])
def test_a_kill_in_either_phase_costs_what_came_after_its_checkpoint(tmp_path, kill_at):
    """Of five validations two are of the language model and three of the graph."""
    undisturbed, kit, asked = Kit(tmp_path / "undisturbed"), Kit(tmp_path / "killed"), SPLIT.test.histories
    whole, parts = [], []

    def watched(method, users=0):
        whole.append(type(method).__name__)
        return judge(method)

    def killed(method, users=0):
        parts.append(type(method).__name__)
        if len(parts) == kill_at:
            raise Killed
        return judge(method)

    expected = undisturbed.agrec(validate=watched, alpha=0.5).recommend(asked, 10)
    assert whole == ["Tiger"] * 2 + ["LightGCN"] * 3
    kit.run = tmp_path / "run"
    with pytest.raises(Killed):
        kit.agrec(validate=killed, alpha=0.5)
    assert parts == whole[:kill_at]
    resumed = kit.agrec(validate=killed, alpha=0.5)
    assert parts[kill_at:] == whole[kill_at - 1 :]
    assert same(resumed.recommend(asked, 10), expected)


def test_training_random_state_is_the_same_with_and_without_the_cache(kit):
    after = []
    for _ in range(2):
        kit.agrec(alpha=0.3)
        after.append(torch.rand(1).item())
    assert after[0] == after[1]


def test_the_graph_is_silent_of_people_whom_it_cannot_tell_items_apart_for(kit):
    graph = {**GRAPH, "settings": {**GRAPH["settings"], "test_edges": "train"}}
    method, asked = kit.agrec(alpha=0.5, graph=graph), SPLIT.test.histories.select(slice(0, 3))
    assert (method.suggestions(asked)[0] >= 0).all()
    strangers = replace(asked, users=asked.users + DATA.num_users)  # LightGCN has not learned them: all items score 0
    assert (method.suggestions(strangers)[0] == -1).all()
    assert np.array_equal(method.recommend(strangers, 5).items, method.rankings(strangers, 5, [0.0])[0].items)


def test_the_graph_suggests_no_seen_item_unless_asked_to(kit):
    asked = SPLIT.valid.histories
    method = kit.agrec(alpha=0.5, n=30)
    for row, history in zip(method.suggestions(asked)[0], rows_of(asked), strict=True):
        assert not set(row) & set(history)
    method = kit.agrec(alpha=0.5, n=30, graph={**GRAPH, "mask_seen": False})
    assert any(set(row) & set(h) for row, h in zip(method.suggestions(asked)[0], rows_of(asked), strict=True))
    masked = method.suggestions(replace(asked, mask_seen=True))[0]
    assert not any(set(row) & set(h) for row, h in zip(masked, rows_of(asked), strict=True))


def test_an_item_without_training_interactions_is_never_suggested_and_both_kinds_of_silence_are_counted(kit):
    rows = rows_of(SPLIT.train.sequences)
    gone = max(rows[0])
    train = replace(
        SPLIT.train, num_users=len(rows) + 2, sequences=make_histories([[i for i in row if i != gone] for row in rows])
    )
    method = kit.agrec(train=train, validate=lambda method, users=0: 0.5, alpha=0.5, n=40)
    assert gone not in method.suggestions(SPLIT.valid.histories)[0]
    event = next(event for event in kit.events if event.get("stage") == "mixture")
    assert (event["users_without_graph"], event["items_without_graph"]) == (2, int((train.item_counts() == 0).sum()))


def test_a_user_of_whom_the_graph_knows_nothing_gets_the_models_answer(kit):
    nobody = Histories(np.array([SPLIT.train.num_users]), np.array([0, 0]), np.empty(0, np.int32))
    method = kit.agrec(alpha=0.7)
    assert (method.suggestions(nobody)[0] == -1).all()
    mixed, alone = method.rankings(nobody, 8, [0.7, 0.0])
    assert np.array_equal(mixed.items, alone.items)


def test_alpha_is_tuned_with_training_interactions_alone(kit):
    """The graph is asked about nothing but training histories before the final ranking."""
    asked: list[list[list[int]]] = []

    def watched(method, users=0):
        asked.append(rows_of(SPLIT.valid.histories))
        return judge(method)

    kit.agrec(validate=watched)
    known = {tuple(row) for row in rows_of(SPLIT.train.sequences)}
    assert asked
    assert all(tuple(row) in known for rows in asked for row in rows)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"alpha": 1.5}, "agrec.alpha = 1.5"),
        ({"alpha": -0.1}, "agrec.alpha = -0.1"),
        ({"n": 0}, "agrec.n = 0"),
        ({"lm": None, "graph": None}, "nothing is left to recommend with"),
        ({"lm": "popularity"}, "popularity cannot be the language model: take one of eager_llm"),
        ({"graph": "tiger"}, "tiger cannot be the graph: take one of"),
        ({"graph": "lightgnn"}, "Did you mean: lightgcn"),
        ({"lm": {"method": "tiger", "settings": {"layer": 3}}}, "Did you mean: layers"),
        ({"preset": "official", "fsm": {"aggregation": "sum"}}, "fsm is of preset=paper"),
        ({"preset": "official"}, "set lm.settings.loss_over=vocabulary"),
        ({"fsm": {"temperature": 0}}, "temperature"),
    ],
)
def test_bad_settings_are_one_clear_message(config, said):
    with pytest.raises(InputError) as error:
        registry.configure("agrec", config)
    assert said in str(error.value)


def test_more_suggestions_than_items_are_refused(kit):
    with pytest.raises(InputError, match="n=41: the catalogue has 40 items"):
        kit.agrec(n=41, alpha=0.5)


def test_codes_of_several_lengths_are_no_matter_of_the_released_code(kit):
    lm = {"method": "p5_cid", "settings": {
        **{key: MODEL[key] for key in MODEL if key != "index"}, "loss_over": "vocabulary",
        "index": {"clusters": 4, "cluster_limit": 10},
    }}  # fmt: skip
    assert len(kit.agrec(lm=lm, alpha=0.5).recommend(SPLIT.test.histories, 5).items) == 60
    with pytest.raises(InputError, match="preset=official wants codes of one length"):
        kit.agrec(lm=lm, alpha=0.5, preset="official")


def test_a_trained_part_of_other_data_is_refused(kit):
    kit.agrec(alpha=0.5)
    folders = {path.parent for path in (kit.folder / "artefacts" / "trained").glob("*/key.json")}
    graph = next(folder for folder in folders if '"lightgcn"' in (folder / "key.json").read_text())
    again = kit.agrec(alpha=0.5, graph={**GRAPH, "saved": graph})
    assert same(again.recommend(SPLIT.test.histories, 5), kit.agrec(alpha=0.5).recommend(SPLIT.test.histories, 5))
    other = replace(SPLIT.train, sequences=SPLIT.train.sequences.without_last(1))
    with pytest.raises(InputError, match="was trained on other data"):
        kit.agrec(train=other, alpha=0.5, graph={**GRAPH, "saved": graph})
    with pytest.raises(InputError, match="was trained with another config"):
        kit.agrec(alpha=0.5, graph={"encoder": "lightgcn", "settings": {"dim": 4}, "saved": graph})
    with pytest.raises(InputError, match="no trained method there"):
        kit.agrec(alpha=0.5, graph={**GRAPH, "saved": kit.folder})
