"""RSLLM's losses against plain loops, gradient caching, what learns in which stage, its switches; LLaRA, TALLRec."""

import hashlib

import numpy as np
import pytest
import torch
from conftest import make_histories
from test_candidates_language import NAMES, SMALL, context, train_view

from genrec_bench.benchmark import published
from genrec_bench.datasets.errors import InputError
from genrec_bench.methods import registry
from genrec_bench.methods.candidates import tuning
from genrec_bench.methods.candidates.prompts import ANSWER, END, HISTORY, LLARA, LLARA_TEXT, Style
from genrec_bench.methods.candidates.tuning import AnswerLoss, ExampleMaker, Pool, PooledBatch, info_nce, pooled_batches
from genrec_bench.methods.candidates.wording import NOUNS, TEMPLATES
from genrec_bench.methods.language.backbone import load_backbone, tiny_llama
from genrec_bench.methods.language.vocabulary import byte_tokenizer
from genrec_bench.methods.llara import vector_share
from genrec_bench.methods.rsllm import RSLLM, RSLLMConfig, style_of

SEQUENCES = ((0, 1, 2, 3), (3, 4, 5, 6), (7, 8, 9, 0), (1, 3, 5, 7))


def made(name="rsllm", dropout=0.0, **config):
    cls = registry.get(name)
    method = cls(registry.configure(name, {**SMALL, "dropout": dropout, "bf16": False, **config}))
    table = np.random.default_rng(1).normal(size=(len(NAMES), 8))
    wanted = any(style.identity == "vector" for style in method.styles())
    method.make_model(train_view(rows=SEQUENCES), context(), table if wanted else None)
    return method


def pool_of(method, style, seed=3):
    maker = ExampleMaker(train_view(rows=SEQUENCES), NAMES, 3, 5)
    places = np.array([[0, 2], [1, 2], [2, 1], [3, 2], [0, 3]])  # the second and the fourth have one target
    return method._pool(maker, style, places, np.random.default_rng(seed))


def batch_of(*pools):
    return PooledBatch(lambda: list(pools))


def gradients(method, loss):
    method.model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in method.model.named_parameters() if p.grad is not None}


def test_contrast_is_the_plain_double_loop():
    rng = torch.Generator().manual_seed(0)
    anchors, others = torch.randn(6, 5, generator=rng), torch.randn(6, 5, generator=rng)
    targets = torch.tensor([4, 7, 4, 1, 2, 7])
    total = 0.0
    for i in range(6):
        cosines = [torch.cosine_similarity(anchors[i], others[j], dim=0) for j in range(6)]
        kept = [j for j in range(6) if j == i or targets[j] != targets[i]]
        total -= torch.log(torch.exp(cosines[i] / 0.5) / sum(torch.exp(cosines[j] / 0.5) for j in kept))
    assert float(info_nce(anchors, others, targets, 0.5)) == pytest.approx(float(total), rel=1e-5)


def test_the_loss_is_that_of_equation_5():
    method = made()
    style = style_of(method.config, 2)
    pool = pool_of(method, style)
    batch = batch_of(pool)
    found = (method.loss()(batch) / batch.learned).detach()
    nll, user, conditioned, alone = [], [], [], []
    with torch.no_grad():
        for row, item in zip(pool.rows, pool.alone, strict=True):
            tokens, kinds = torch.from_numpy(row.tokens)[None], torch.from_numpy(row.kinds)
            out = method.model.lm(inputs_embeds=method.model.embed(tokens), output_hidden_states=True)
            log_probs, hidden = out.logits[0].log_softmax(-1), out.hidden_states[-1][0]
            learned = [at for at in range(len(kinds)) if kinds[at] in (ANSWER, END)]
            nll += [-log_probs[at - 1, tokens[0, at]] for at in learned]
            user.append(hidden[kinds == HISTORY].mean(0))
            conditioned.append(hidden[kinds == ANSWER].mean(0))
            by_itself = torch.from_numpy(item.tokens)[None]
            out = method.model.lm(inputs_embeds=method.model.embed(by_itself), output_hidden_states=True)
            alone.append(out.hidden_states[-1][0][torch.from_numpy(item.kinds) == ANSWER].mean(0))
    user, conditioned, alone = (torch.stack(states) for states in (user, conditioned, alone))
    targets = torch.from_numpy(pool.targets)
    item_level = info_nce(alone, conditioned, targets, 0.5) / len(pool)
    user_level = info_nce(user, alone, targets, 0.5) / len(pool)
    expected = torch.stack(nll).mean() + 0.3 * item_level + 0.4 * user_level
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("contrast", [{}, {"item": False}, {"user": False}, {"item": False, "user": False}])
def test_gradient_caching_is_the_big_batch(contrast):
    method = made(contrast=contrast)
    pool = pool_of(method, style_of(method.config, 2))
    method.model.train()
    found = {}
    for positions in (1, 500, 10**9):
        loss = method.loss()
        loss.positions = positions
        batch = batch_of(pool)
        found[positions] = gradients(method, loss(batch) / batch.learned)
    assert len(pool.chunks(1)) == 5
    assert len(pool.chunks(10**9)) == 1
    whole = found.pop(10**9)
    assert "inputs.projector.0.weight" in whole
    for parts in found.values():
        assert parts.keys() == whole.keys()
        for name, gradient in whole.items():
            torch.testing.assert_close(parts[name], gradient, atol=1e-6, rtol=0)


def test_caching_repeats_the_dropout_of_the_first_pass(monkeypatch):
    method = made(dropout=0.3)
    pool = pool_of(method, style_of(method.config, 2))
    method.model.train()

    def step():
        torch.manual_seed(5)
        loss = method.loss()
        loss.positions = 1
        return gradients(method, loss(batch_of(pool)))

    cached = step()
    monkeypatch.setattr(tuning, "checkpoint", lambda function, *given, use_reentrant: function(*given))
    kept = step()
    for name, gradient in kept.items():
        torch.testing.assert_close(cached[name], gradient, atol=1e-5, rtol=1e-4)
    torch.manual_seed(6)
    other = method.loss()(batch_of(pool))
    torch.manual_seed(5)
    assert float(other.detach()) != float(method.loss()(batch_of(pool)).detach())


def test_only_stage_2_moves_the_projector():
    method = made(item={"preloaded": False})
    for stage in (1, 2):
        found = gradients(method, method.loss()(batch_of(pool_of(method, style_of(method.config, stage)))))
        learned = {name.split(".")[1] for name in found if name.startswith("inputs.")}
        assert learned == ({"markers", "identifiers"} if stage == 1 else {"markers", "projector", "table"})


def fitted(name="rsllm", **config):
    cls = registry.get(name)
    values = {
        **SMALL, "bf16": False, "epochs": 1, "batch": 4, "examples": 2, "least_history": 1, "candidates": 5,
        "learning_rate": 0.01, "averaging": 0.0, **config,
    }  # fmt: skip
    method = cls(registry.configure(name, values))
    torch.manual_seed(0)
    method.fit(train_view(rows=SEQUENCES), context())
    return method


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.npy"
    np.save(path, np.random.default_rng(1).normal(size=(len(NAMES), 8)).astype(np.float32))
    return str(path)


def digest(method):
    return hashlib.sha256(method.model.inputs.table.detach().numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("name", ["rsllm", "llara"])
def test_frozen_tables_stay_frozen(name, table):
    before = made(name)
    before.make_model(train_view(rows=SEQUENCES), context(), np.load(table))
    projector = before.model.inputs.projector[0].weight.clone()
    config = {"curriculum": "hybrid_only"} if name == "llara" else {}
    method = fitted(name, table=table, **config)
    assert digest(method) == digest(before)
    assert not torch.equal(method.model.inputs.projector[0].weight, projector)


def test_a_table_that_is_not_preloaded_learns():
    first = made(item={"preloaded": False}).item_table(train_view(rows=SEQUENCES), context())
    method = fitted(item={"preloaded": False}, encoder_dim=8)
    assert first.shape == (len(NAMES), 64)
    start = method.item_table(train_view(rows=SEQUENCES), context())
    start = start / np.sqrt(np.square(start).mean())
    assert not np.allclose(method.model.inputs.table.detach().numpy(), start, atol=1e-4)


def test_a_table_of_other_size_is_refused(tmp_path):
    np.save(tmp_path / "small.npy", np.zeros((3, 8)))
    with pytest.raises(InputError, match="3 rows, but the data set has 10 items"):
        fitted(table=str(tmp_path / "small.npy"))


TITLE, TEXT_ID, VECTOR = Style(), Style(marker=True, identity="token"), Style(marker=True, identity="vector")


@pytest.mark.parametrize(
    ("config", "styles", "printed"),
    [
        ({}, (TEXT_ID, VECTOR), "encoder=SASRec"),
        ({"encoder": "caser"}, (TEXT_ID, VECTOR), "encoder=Caser"),
        ({"encoder": "svd"}, (TEXT_ID, VECTOR), "not printed"),
        (
            {"item": {"title": False}},
            (Style(False, True, "token"), Style(False, True, "vector")),
            "w/o textual feature",
        ),
        ({"item": {"item_id": False}}, (TITLE, TITLE), "w/o item ID representation"),
        ({"item": {"iid_tokens": False}}, (TITLE, VECTOR), "w/o IID tokens"),
        ({"item": {"preloaded": False}}, (TEXT_ID, VECTOR), "w/o pre-loaded item embeddings"),
        ({"contrast": {"item": False}}, (TEXT_ID, VECTOR), "contrastive=U-T only"),
        ({"contrast": {"user": False}}, (TEXT_ID, VECTOR), "contrastive=I-I only"),
        ({"contrast": {"user": False, "item": False}}, (TEXT_ID, VECTOR), "w/o contrastive alignment"),
        ({"contrast": {"gamma": 0.0}}, (TEXT_ID, VECTOR), "contrastive=U-T only"),
        ({"contrast": {"beta": 0.0}}, (TEXT_ID, VECTOR), "contrastive=I-I only"),
        ({"contrast": {"beta": 0.0, "gamma": 0.0}}, (TEXT_ID, VECTOR), "w/o contrastive alignment"),
        ({"contrast": {"beta": 0.0, "item": False}}, (TEXT_ID, VECTOR), "w/o contrastive alignment"),
        ({"contrast": {"beta": 0.07, "gamma": 0.05}}, (TEXT_ID, VECTOR), "encoder=SASRec"),
        ({"stages": [1]}, (TEXT_ID,), "stage 1 only"),
        ({"stages": [2]}, (VECTOR,), "stage 2 only"),
        ({"stages": [2], "encoder": "caser"}, (VECTOR,), "not printed"),
        ({"stages": [2], "item": {"title": False}}, (Style(False, True, "vector"),), "not printed"),
        ({"stage1": {"prompt": "text_only"}}, (TITLE, VECTOR), "not printed"),
        ({"item": {"iid": "digits"}}, (Style(True, True, "digits"), VECTOR), "encoder=SASRec"),
        ({"item": {"name": "number", "item_id": False}}, (TITLE, TITLE), "not printed"),
    ],
)
def test_switches(config, styles, printed):
    method = RSLLM(RSLLMConfig(**config))
    assert tuple(method.styles()) == styles
    assert method.style == styles[-1]
    assert method.published_variant() == printed


def test_a_pool_is_no_larger_than_a_step():
    for batch, contrast in ((32, {"pool": 32}), (256, {"pool": 256}), (16, {"pool": 4}), (16, {})):
        config = RSLLMConfig(batch=batch, contrast=contrast)
        assert registry.configure("rsllm", config.model_dump(mode="json")) == config  # as a worker makes it again
    with pytest.raises(InputError, match=r"contrast\.pool=64 rows .* batch=32: set contrast\.pool to 32 at most"):
        registry.configure("rsllm", {"contrast": {"pool": 64}})


def test_the_names_of_the_printed_rows():
    variants = {row.variant for row in published.rows() if row.method == "rsllm"}
    (names,) = (mark.args[1] for mark in test_switches.pytestmark)
    assert {printed for _, _, printed in names} - {"not printed"} == variants - {"encoder=GRU4Rec", "full", "two-stage"}


@pytest.mark.parametrize(
    "config", [{"stages": [1]}, {"item": {"title": False}}, {"item": {"iid": "digits"}}, {"item": {"name": "number"}}]
)
def test_rows_of_the_ablation_run(config, table):
    method = fitted(table=table, **config)
    histories = train_view(rows=SEQUENCES).sequences.last(3)
    candidates = np.tile(np.arange(6), (len(histories), 1))
    assert method.choose(histories, candidates).picked.shape == (4,)
    assert (method.model.inputs.projector is None) == (config == {"stages": [1]})


def test_the_curriculum_of_llara():
    assert [vector_share("on", share) for share in (0.0, 0.25, 1.0)] == [0.0, 0.25, 1.0]
    assert [vector_share("two_stage", share) for share in (0.0, 0.49, 0.5)] == [0.0, 0.0, 1.0]
    assert vector_share("text_only", 0.9) == 0.0
    assert vector_share("hybrid_only", 0.0) == 1.0
    assert made("llara").style == LLARA
    text = made("llara", curriculum="text_only")
    assert text.style == LLARA_TEXT
    assert text.item_table(train_view(), context()) is None
    assert text.model.inputs.projector is None
    assert text.published_variant() == "not printed"


def test_llara_shows_vectors_more_and_more_often(table, monkeypatch):
    shown = []
    method = registry.get("llara")
    original = method._pool
    monkeypatch.setattr(
        method, "_pool", lambda self, maker, style, *rest: shown.append(style) or original(self, maker, style, *rest)
    )
    fitted("llara", table=table, epochs=12, patience=99, batch=1, examples=2)
    half = len(shown) // 2
    counts = [sum(style == LLARA for style in part) for part in (shown[:half], shown[half:])]
    assert counts[0] < counts[1] < half
    assert set(shown) == {LLARA, LLARA_TEXT}


def test_tallrec_tunes_queries_and_values_on_text():
    config = registry.configure("tallrec", {"lora": {"r": 16}})  # the others are not the ones of plain adapters
    assert config.lora.model_dump() == {"r": 16, "alpha": 16.0, "dropout": 0.05, "targets": ("q_proj", "v_proj")}
    method = fitted("tallrec")
    assert method.model.inputs.projector is None
    assert method.parameters()[1] > 0


@pytest.fixture
def folder(tmp_path):
    """A pretrained model, as far as anybody can tell."""
    wordings = [part.format(**NOUNS["movies"]._asdict()) for template in TEMPLATES for part in template]
    tokenizer = byte_tokenizer([*NAMES, *wordings] * 2)
    tiny_llama(len(tokenizer), layers=2, dim=32, heads=2, feedforward=64).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.parametrize("name", ["rsllm", "llara", "tallrec"])
def test_a_pretrained_model_gets_adapters_and_nothing_else_of_it_changes(name, folder, table, tmp_path):
    pytest.importorskip("peft")
    with_table = {} if name == "tallrec" else {"table": table}
    config = {"backbone": folder, "decode": "loglik", "gradient_checkpointing": name == "rsllm", **with_table}
    method = fitted(name, **config)
    learned = dict(method.model.named_parameters())
    adapters = {key: value for key, value in learned.items() if ".lora_" in key}
    reached = {key.split(".lora_")[0].rsplit(".", 1)[1] for key in adapters}
    everywhere = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert reached == set(method.config.lora.targets or everywhere)
    assert all(value.abs().sum() > 0 for key, value in adapters.items() if ".lora_B" in key)  # it begins as zeros
    before = load_backbone(folder, kind="causal", device="cpu", seed=0).model.state_dict()
    for key, value in method.model.lm.state_dict().items():
        if ".lora_" not in key:
            plain = key.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(value, before[plain]), key
    saved = tmp_path / "saved"
    saved.mkdir()
    method.save(saved)
    loaded = registry.get(name)(method.config)
    loaded.load(saved, train_view(rows=SEQUENCES), context())
    asked = make_histories([[0, 1, 2], [5, 4]]), np.array([[3, 4, 6, 7], [0, 1, 2, 8]])
    assert np.array_equal(method.choose(*asked).scores, loaded.choose(*asked).scores)


def test_what_is_computed_again_learns_the_same(folder, table):
    """A pool's chunks are computed twice, and with gradient checkpointing each of their layers within that."""
    pytest.importorskip("peft")
    config = {"backbone": folder, "decode": "loglik", "table": table, "lora": {"dropout": 0.0}, "dropout": 0.0}
    at_once, in_parts, nested = (
        fitted("rsllm", **config, batch_tokens=tokens, gradient_checkpointing=layers)
        for tokens, layers in ((10**6, False), (1, False), (1, True))
    )
    for key, value in at_once._learned().items():
        for other in (in_parts, nested):
            assert torch.allclose(value, other._learned()[key], atol=1e-5), key


def test_less_memory_computes_half_of_everything_at_a_time():
    config = registry.configure("rsllm", {"batch_tokens": 500, "rows_at_a_time": 5})
    less = config.less_memory()
    assert (less.batch_tokens, less.rows_at_a_time, less.decode_tokens) == (250, 3, config.decode_tokens // 2)
    assert registry.configure("llm_zero_shot", {}).less_memory().decode_tokens == config.decode_tokens // 2
    with pytest.raises(InputError, match="micro_batches is not used here"):
        registry.configure("tallrec", {"micro_batches": 2})


@pytest.mark.parametrize("name", ["rsllm", "llara", "tallrec", "llm_zero_shot"])
def test_a_large_model_asks_for_a_gpu(name):
    cls = registry.get(name)
    assert [cls.resources(cls.Config(), scale).gpus for scale in ("tiny", "base")] == [0.25, 1.0]


def test_examples_hold_the_target_and_what_its_user_never_took():
    names = [*NAMES[:9], NAMES[4]]  # items 4 and 9 are shown alike
    maker = ExampleMaker(train_view(rows=SEQUENCES), names, 2, 20)
    rng = np.random.default_rng(0)
    for row, items in enumerate(SEQUENCES):
        for place in range(1, 4):
            example = maker.example(row, place, rng)
            assert example.target == items[place]
            assert example.history.tolist() == list(items[max(place - 2, 0) : place])
            others = [item for item in example.candidates.tolist() if item != example.target]
            assert len(others) == len(example.candidates) - 1
            assert not set(others) & set(items)
            shown = [names[item] for item in example.candidates]
            assert len(set(shown)) == len(shown)
    few = ExampleMaker(train_view(rows=SEQUENCES), NAMES, 2, 3)
    assert len(few.example(0, 2, rng).candidates) == 3


def test_targets_of_an_epoch():
    maker = ExampleMaker(train_view(rows=(*SEQUENCES, (5,), (6, 7))), NAMES, 2, 5)
    every = maker.places(0, 1, np.random.default_rng(0))
    assert sorted(every.tolist()) == [[r, p] for r in range(4) for p in (1, 2, 3)] + [[5, 1]]
    some = maker.places(1, 3, np.random.default_rng(0))
    assert sorted(some.tolist()) == [[0, 3], [1, 3], [2, 3], [3, 3], [5, 1]]
    assert not np.array_equal(every, maker.places(0, 1, np.random.default_rng(1)))


def test_a_step_is_made_when_it_is_asked_for():
    made_pools = []

    def make(places, rng):
        made_pools.append(len(places))
        return Pool([], [], places[:, 0])

    places = np.zeros((10, 2), dtype=np.int64)
    steps = list(pooled_batches(places, 4, 3, lambda share: make, np.random.default_rng(0)))
    assert len(steps) == 3
    assert not made_pools
    assert [len(step.part(0, 1).pools) for step in steps] == [1, 1, 1]
    assert made_pools == [3, 1, 3, 1, 2]


def test_parts_of_a_step_weigh_as_the_whole():
    method = made()
    style = style_of(method.config, 2)
    batch = batch_of(pool_of(method, style), pool_of(method, style, seed=4))
    loss = AnswerLoss(method.model, positions=10**9, gamma=0.3, beta=0.4)
    whole = float(loss(batch).detach())
    parts = sum(float(loss(batch.part(first, first + 1)).detach()) for first in range(2))
    assert parts == pytest.approx(whole, rel=1e-5)
    assert len(batch.levels) == sum(int(np.isin(row.kinds, (ANSWER, END)).sum()) for p in batch.pools for row in p.rows)


@pytest.mark.parametrize("positions", [10**9, 1])
def test_the_history_is_learned_beside_the_answer(positions):
    """Each of its titles' tokens by the tokens before it; not the wording, the candidates, markers or vectors."""
    method = made()
    style = style_of(method.config, 2)
    batch = batch_of(pool_of(method, style), pool_of(method, style, seed=4))
    rows = [row for pool in batch.pools for row in pool.rows]
    assert all((row.tokens[row.kinds == HISTORY] < 0).any() for row in rows)
    answers, titles = [], []
    for row in rows:
        tokens = torch.from_numpy(row.tokens)
        with torch.no_grad():
            logits = method.model.lm.get_output_embeddings()(method.model.states(tokens[None])[0])
        for place in range(1, len(tokens)):
            into = {ANSWER: answers, END: answers, HISTORY: titles}.get(int(row.kinds[place]))
            if into is not None and tokens[place] >= 0:
                into.append(-float(logits[place - 1].log_softmax(0)[tokens[place]]))
    assert batch.shown == len(titles) > 0
    plain = {"positions": positions, "gamma": 0.3, "beta": 0.4, "pool": 3}
    expected = float(AnswerLoss(method.model, **plain)(batch)) + 0.5 * len(answers) * np.mean(titles)
    loss = AnswerLoss(method.model, history=0.5, **plain)
    assert float(loss(batch)) == pytest.approx(expected, rel=1e-5)
    parts = sum(float(loss(batch.part(first, first + 1))) for first in range(2))
    assert parts == pytest.approx(expected, rel=1e-5)
