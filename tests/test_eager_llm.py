"""EAGER-LLM: examples token by token, [CON] unseen, the adapter alone in stage 2, switches, resuming, bad input."""

import hashlib
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_histories

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.events import item_table
from genrec_bench.datasets.interactions import TrainView
from genrec_bench.methods import registry
from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.base import Context
from genrec_bench.methods.checkpoint import Checkpoint

pytest.importorskip("transformers")
pytest.importorskip("peft")

from genrec_bench.methods.language.sequences import ASIDE, GIVEN, TEXT, TokenSequences

TITLES = ["red lamp", "blue kettle", "green novel", "old saddle", "new chair", "big drum"]
CATEGORIES = ["light", "kitchen|light", "books", "", "light", "music"]
ROWS = [[0, 1, 2, 3], [1], [3, 0, 4], [5, 4, 0, 2], [2, 5]]
SMALL = {
    "bf16": False, "layers": 1, "width": 16, "heads": 2, "feedforward": 32, "epochs": 2, "max_history": 4,
    "batch_tokens": 256, "index": {"codes": 4, "behaviour": "svd", "dim": 4, "min_first_level_use": 0.0},
    "cit": {"reconstruction": 3, "preference": 4}, "aat": {"learning_rate": 0.01, "epochs": 2},
}  # fmt: skip


def view(titles=TITLES, rows=ROWS) -> TrainView:
    count = len(titles)
    items = item_table([f"i{i}" for i in range(count)], titles, [""] * count, CATEGORIES if any(titles) else [""] * 6)
    return TrainView(len(rows), items, make_histories(rows))


@pytest.fixture
def setting(tmp_path):
    """``setting(folder=None)``: a context of seed 0, tier tiny."""

    def make(folder: Path | None = None, validate=lambda method, users=0: 0.5, scale="tiny") -> Context:
        torch.manual_seed(0)
        return Context(0, "cpu", scale, Checkpoint(folder, 0.0), ArtefactCache(tmp_path / "artefacts"), validate)

    return make


def method_of(**changes):
    groups = {key: {**SMALL.get(key, {}), **value} for key, value in changes.items() if isinstance(value, dict)}
    return registry.get("eager_llm")(registry.configure("eager_llm", {**SMALL, **changes, **groups}))


def fitted(setting, **changes):
    method = method_of(**changes)
    method.fit(view(), setting())
    return method


def answers(method):
    ranking = method.recommend(make_histories([[0, 1], [], [3]]), 6)
    assert [sorted(row) for row in ranking.items.tolist()] == [[0, 1, 2, 3, 4, 5]] * 3
    return ranking


def equal(one, other) -> bool:
    return np.array_equal(one.items, other.items) and np.array_equal(one.scores, other.scores)


def sha256(weights: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].detach().numpy().tobytes())
    return digest.hexdigest()


# --- examples ------------------------------------------------------------------------------------------------------


def shown(method, examples: TokenSequences, row: int) -> list[str]:
    """A row's tokens: learned ones in brackets, asides as (item), codes of item i as i.level."""
    names = {
        int(token): f"{item}.{level}" for item, ids in enumerate(method.items.ids) for level, token in enumerate(ids)
    }
    part = slice(examples.offsets[row], examples.offsets[row + 1])
    out = []
    for token, level in zip(examples.tokens[part].tolist(), examples.levels[part].tolist(), strict=True):
        name = names.get(token, method.backbone.tokenizer.convert_ids_to_tokens(token))
        out.append(f"({token})" if level == ASIDE else f"[{name}]" if level != GIVEN else name)
    return out


@pytest.fixture
def written(setting):
    """A method with codes that no two items share on any level, so that a token names its item."""
    method = method_of(index={"mode": "random", "codes": 4096}, epochs=1, aat={"enabled": False}, thinning=0.0)
    method.fit(view(), setting())
    return method


def test_what_is_learned_and_where_con_stands(written):
    rows = make_histories([[0, 1, 2]])
    rng = np.random.default_rng(0)
    open_end = written.writer.sequences(rows, True, rng, asides=True)
    tail = shown(written, open_end, 0)[-18:]
    assert tail == [
        ":", "0.0", "0.1", "0.2", "0.3", ",", "[1.0]", "[1.1]", "[1.2]", "[1.3]", ",", "(1)",
        "[2.0]", "[2.1]", "[2.2]", "[2.3]", ",", "(2)",
    ]  # fmt: skip
    prefixes = written.writer.sequences(rows, False, rng, asides=True)
    for row, item in enumerate((1, 2)):
        codes = [f"[{item}.{level}]" for level in range(4)]
        assert shown(written, prefixes, row)[-6:] == [*codes, "</s>", f"({item})"]
        assert not any("[" in name for name in shown(written, prefixes, row)[:-6])


def test_stage_two_learns_each_users_last_item_alone(written):
    examples = written.writer.longest(make_histories([[0, 1, 2], [5, 3]]), open_end=True)
    for row, item in enumerate((2, 3)):
        names = shown(written, examples, row)
        assert names[-4:] == [f"[{item}.{level}]" for level in range(4)]
        assert not any("[" in name for name in names[:-4])


def test_an_epoch_holds_the_mixture(written):
    rng = np.random.default_rng(0)
    epoch = written.writer.epoch(view().sequences, written.mixture(), True, rng, asides=True)
    assert len(epoch) == 4 + 3 * 3 + 2 * 4  # histories with a target, three reconstructions, two preferences
    with_aside = [(epoch.levels[a:b] == ASIDE).any() for a, b in zip(epoch.offsets, epoch.offsets[1:], strict=False)]
    assert with_aside == [True] * 4 + [False] * 17  # contrast is the sequence task's alone
    titles = written.writer.codes_to_titles(np.array([1]), rng)
    assert shown(written, titles, 0)[-3:] == ["[blue]", "[kettle]", "[</s>]"]
    assert set(titles.levels) == {GIVEN, TEXT}
    details = written.writer.codes_to_details(np.array([1]), rng)
    assert shown(written, details, 0)[-7:] == [
        "[blue]", "[kettle]", "[,]", "[kitchen]", "[,]", "[light]", "[</s>]",
    ]  # fmt: skip


# --- contrast ------------------------------------------------------------------------------------------------------


def test_con_and_projectors_are_gone_and_never_mattered_to_decoding(setting):
    """While the contrast is attached the model decodes bit for bit what it decodes without it."""
    method = fitted(setting, aat={"enabled": False})
    bare = answers(method)
    assert not any("contrast" in name for name, _ in method.model.named_parameters())
    size = method.model.get_input_embeddings().weight.shape
    contrast = method._contrast(view(), setting())
    method.model.add_module("contrast", contrast)
    assert equal(answers(method), bare)
    assert method.model.get_input_embeddings().weight.shape == size  # [CON] has no row
    del method.model.contrast
    assert equal(answers(method), bare)


def test_the_contrast_is_a_mean_over_the_batch_beside_the_mean_over_targets(setting):
    """Also in parts, one of them without an aside."""
    from genrec_bench.methods.language.batches import packed_batches
    from genrec_bench.methods.language.sequences import stack

    method = method_of(aat={"enabled": False}, dropout=0.0, epochs=1, gct={"lambda_s": 0.5, "lambda_b": 0.25})
    method.fit(view(), setting())
    contrast = method._contrast(view(), setting())
    rng = np.random.default_rng(0)
    rows = stack(
        method.writer.sequences(view().sequences, True, rng, asides=True),
        method.writer.codes_to_titles(np.arange(6), rng),
    )
    (batch,) = packed_batches(rows, method._row_tokens(True), 10**6, method.pad, rng)
    targets, asides = len(batch.targets), batch.asides
    assert asides.targets == targets
    generation = method.loss()(batch) / targets
    both = method.loss(contrast)(batch) / targets
    from genrec_bench.methods.language.codes import packed_states

    states = packed_states(method.model, batch, contrast.token)[asides.at]
    assert float(both) == pytest.approx(float(generation + contrast(states, asides) / len(asides.at)), rel=1e-5)
    parts = [batch.part(row, row + 1) for row in range(len(batch))]
    assert any(len(part.asides.at) == 0 for part in parts)
    assert float(sum(method.loss(contrast)(part) for part in parts) / targets) == pytest.approx(float(both), rel=1e-5)


def test_contrast_teaches_and_its_weights_switch_it(setting):
    def weights(**gct) -> str:
        return sha256(dict(fitted(setting, aat={"enabled": False}, gct=gct).model.state_dict()))

    off = weights(enabled=False)
    assert weights(lambda_s=0.0, lambda_b=0.0) == off
    assert len({off, weights(), weights(lambda_s=0.0), weights(lambda_b=0.0)}) == 4


# --- adapter -------------------------------------------------------------------------------------------------------


def test_stage_two_changes_the_adapter_alone(setting):
    from genrec_bench.methods.language.adapters import base_weights

    without = fitted(setting, aat={"enabled": False})
    tuned = fitted(setting)
    assert sha256(base_weights(tuned.model)) == sha256(base_weights(without.model))
    learned = {name: value for name, value in tuned.model.named_parameters() if ".lora_" in name}
    assert len(learned) == 2 * 7  # A and B of each linear layer
    assert all(value.abs().sum() > 0 for value in learned.values())  # B starts at zero
    tuned.adapted = False
    assert equal(answers(tuned), answers(without))
    tuned.adapted = True
    assert not np.array_equal(answers(tuned).scores, answers(without).scores)


def test_adapters_are_judged_as_they_are_trained(setting):
    """Also where the last one is off at inference: epochs are chosen with it, and a LoRA of stage 1 always counts."""
    seen = []

    def validate(method, users=0):
        seen.append((method.adapted, any(".lora_" in name for name, _ in method.model.named_parameters())))
        return 0.5

    method = method_of(aat={"enabled_at_inference": False, "epochs": 1}, lora={"r": 2})
    method.fit(view(), setting(validate=validate))
    assert seen == [(True, True)] * 3
    assert not method.adapted


@pytest.mark.parametrize("tied", [True, False])
def test_stage_ones_adapters_are_merged_without_loss(setting, monkeypatch, tied):
    from genrec_bench.methods import eager_llm

    before = []
    merge = eager_llm.merge

    def noted(backbone):
        before.append(answers(method))
        merge(backbone)

    monkeypatch.setattr(eager_llm, "merge", noted)
    method = method_of(lora={"r": 2}, tied=tied, learning_rate=0.05, aat={"enabled": False})
    method.fit(view(), setting())
    after = answers(method)
    assert not any(".lora_" in name for name, _ in method.model.named_parameters())
    assert np.allclose(before[0].scores, after.scores, atol=1e-5)


def test_variants_are_the_two_states(setting):
    method = fitted(setting)
    variants = method.variants()
    assert (method.adapted, method.adapted_text) == (True, False)  # on for recommendation, off for text
    assert variants["adapter off"].write_titles(np.arange(6)) == method.write_titles(np.arange(6))
    assert equal(answers(variants["adapter on"]), answers(method))
    assert not np.array_equal(answers(variants["adapter off"]).scores, answers(method).scores)
    off = fitted(setting, aat={"enabled_at_inference": False})
    assert equal(answers(off), answers(variants["adapter off"]))
    assert fitted(setting, aat={"enabled": False}).variants() == {}


def test_titles_are_written_in_the_order_asked(setting):
    method = method_of(
        epochs=60, learning_rate=0.02, dropout=0.0, averaging=0.0, cit={"reconstruction": 6}, aat={"enabled": False}
    )
    scores = count(1)
    method.fit(view(), setting(validate=lambda method, users=0: next(scores) / 100))  # the last epoch is kept
    assert method.write_titles(np.array([4, 0, 5])) == ["new chair", "red lamp", "big drum"]


def test_parameters_count_what_either_stage_trained(setting):
    whole = fitted(setting)
    everything, trained = whole.parameters()
    assert everything == trained
    lora = fitted(setting, lora={"r": 2})
    everything, trained = lora.parameters()
    assert trained < everything


@pytest.mark.parametrize("changes", [{}, {"aat": {"enabled": False}}, {"lora": {"r": 2}}, {"tied": False}])
def test_saved_and_loaded_it_answers_the_same(tmp_path, setting, changes):
    method = fitted(setting, **changes)
    folder = tmp_path / "saved"
    folder.mkdir()
    method.save(folder)
    assert not any("contrast" in path.name for path in folder.rglob("*"))
    loaded = method_of(**changes)
    loaded.load(folder, view(), setting())
    assert equal(answers(loaded), answers(method))
    items = np.arange(6)
    assert loaded.write_titles(items) == method.write_titles(items)


@pytest.mark.parametrize("kill_at", [1, 2, 3])
def test_killed_in_either_stage_and_resumed_it_answers_the_same(tmp_path, setting, kill_at):
    class Killed(Exception):
        pass

    def fit(folder, kill_at=-1):
        seen = []

        def validate(method, users=0):
            seen.append(1)
            if len(seen) == kill_at + 1:
                raise Killed
            return float(np.exp(answers(method).scores.sum() / 100))

        method = method_of(dropout=0.2)
        method.fit(view(), setting(folder, validate))
        return method

    undisturbed = fit(tmp_path / "one")
    with pytest.raises(Killed):
        fit(tmp_path / "two", kill_at)
    assert equal(answers(fit(tmp_path / "two")), answers(undisturbed))


@pytest.mark.parametrize(
    ("values", "row"),
    [
        ({}, None),
        ({"aat": {"enabled": False}}, "DKI+GCT"),
        ({"aat": {"enabled": False}, "gct": {"enabled": False}}, "DKI"),
        ({"index": {"mode": "random"}, "aat": {"enabled": False}, "gct": {"enabled": False}},
         "w/o DKI+GCT+AAT (random index)"),
        ({"index": {"mode": "semantic"}}, "not printed"),
        ({"index": {"levels": 6}}, "not printed"),
        ({"gct": {"lambda_b": 0}}, "not printed"),
        ({"cit": {"preference": 0}}, "not printed"),
        ({"aat": {"enabled_at_inference": False}}, "not printed"),
    ],
)  # fmt: skip
def test_a_config_stands_beside_its_own_printed_row(values, row):
    assert method_of(**values).published_variant() == row


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gct": {"lambda_s": -1}}, r"eager_llm.gct.lambda_s = -1: Input should be greater than or equal to 0"),
        ({"gct": {"lambda_b": 11}}, "eager_llm.gct.lambda_b = 11: Input should be less than or equal to 10"),
        ({"gct": {"temperature": 0}}, "eager_llm.gct.temperature = 0: Input should be greater than or equal to 0.01"),
        ({"cit": {"reconstuction": 5}}, "setting of eager_llm.cit 'reconstuction'.*reconstruction"),
        ({"aat": {"lora": {"targets": ["q_prj"]}}}, "LoRA targets q_prj are not in this model; .*q_proj"),
        ({"index": {"mode": "both"}}, "eager_llm.index.mode = 'both'"),
        ({"index": {"codes": 2}}, "6 items: ask for 3 codes a level or more"),
        ({"index": {"behaviour": "dim"}}, "behaviour encoder 'dim'.*din"),
        ({"aat": {"min_interactions": 9}}, "aat.min_interactions=9: no user has as many"),
        ({"code_start": "centroids", "index": {"mode": "random"}}, "index.mode=random has no source vectors"),
    ],
)
def test_settings_that_cannot_be(setting, values, message):
    with pytest.raises(InputError, match=message):
        fitted(setting, **values)


def test_items_without_titles(setting):
    with pytest.raises(InputError, match=r"none of the 6 items has a title.*index.mode=unit.*gct.lambda_s.*cit.recon"):
        method_of().fit(view(titles=[""] * 6), setting())
    silent = {"index": {"mode": "behavior"}, "gct": {"lambda_s": 0}, "cit": {"reconstruction": 0, "preference": 0}}
    method = method_of(**silent)
    method.fit(view(titles=[""] * 6), setting())
    answers(method)


@pytest.mark.parametrize("mode", ["unit", "semantic", "behavior"])
def test_codes_start_at_the_centroids_of_the_sources_of_the_index(setting, mode, monkeypatch):
    from genrec_bench.methods import eager_llm

    started = []
    real = eager_llm.start_at_centroids
    monkeypatch.setattr(eager_llm, "start_at_centroids", lambda *given: started.append(given[3]) or real(*given))
    off = {"gct": {"enabled": False}, "aat": {"enabled": False}}
    method = fitted(setting, code_start="centroids", index={"mode": mode}, **off)
    text, behaviour = (method._sources(view(), setting(), [name])[name].shape[1] for name in ("text", "behaviour"))
    assert [vectors.shape[1] for vectors in started] == [text * (mode != "behavior") + behaviour * (mode != "semantic")]
    assert not equal(answers(method), answers(fitted(setting, index={"mode": mode}, **off)))


def test_centroids_of_texts_need_texts(setting):
    silent = {"gct": {"lambda_s": 0}, "cit": {"reconstruction": 0, "preference": 0}}
    method = method_of(code_start="centroids", **silent)
    with pytest.raises(InputError, match=r"has a title.*index.mode=unit.*code_start=centroids"):
        method.fit(view(titles=[""] * 6), setting())


def test_an_adapter_of_another_model(tmp_path, setting):
    method = fitted(setting)
    (tmp_path / "saved").mkdir()
    method.save(tmp_path / "saved")
    other = fitted(setting, width=32, aat={"enabled": False})
    from genrec_bench.methods.language.adapters import load_adapter

    with pytest.raises(InputError, match="is not one of this model"):
        load_adapter(other.backbone, tmp_path / "saved" / "adapter")
    deeper = fitted(setting, layers=2, aat={"enabled": False})
    with pytest.raises(InputError, match=r"is not one of this model: .*layers\.1\..* is in one of them only"):
        load_adapter(deeper.backbone, tmp_path / "saved" / "adapter")
    renamed = fitted(setting, aat={"enabled": False})
    renamed.backbone.identity["model"] = "another"
    with pytest.raises(InputError, match="it was made for tiny-llama, this is another"):
        load_adapter(renamed.backbone, tmp_path / "saved" / "adapter")


def test_items_that_training_never_saw(setting):
    """Item 5 is in no sequence: it has codes and can be recommended, and nothing is NaN."""
    rows = [[0, 1, 2, 3], [1, 4], [3, 0, 4]]
    method = method_of()
    method.fit(view(rows=rows), setting())
    assert np.isfinite(answers(method).scores).all()
