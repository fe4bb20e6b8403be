"""What generative methods share: prompts and examples of TIGER, real items, suites."""

import json
import shlex
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, make_data, make_histories

from genrec_bench.benchmark.evaluate import evaluate
from genrec_bench.benchmark.protocols import Full, selection_value
from genrec_bench.benchmark.suite import cells, parse_settings, read_suite
from genrec_bench.datasets import synthetic
from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.interactions import TrainView
from genrec_bench.datasets.splits import leave_one_out
from genrec_bench.methods import registry
from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.base import Context
from genrec_bench.methods.checkpoint import Checkpoint
from genrec_bench.methods.indexing.quality import PoorIndex

pytest.importorskip("transformers")

from genrec_bench.methods.language.sequences import GIVEN, TokenSequences
from genrec_bench.methods.tiger import CODES, START

FOUR = {"0": ["<a_0>", "<b_0>"], "1": ["<a_0>", "<b_1>"], "2": ["<a_1>", "<b_0>"], "3": ["<a_1>", "<b_1>"]}
SMALL = {"bf16": False, "layers": 1, "width": 16, "heads": 2, "feedforward": 32, "epochs": 2, "max_history": 3}


class Kit:
    """Fits methods on sequences written out, with item codes written out."""

    def __init__(self, folder: Path):
        self.folder = folder

    def index(self, codes: dict[str, list[str]], **settings) -> dict:
        """Settings that read these codes (item number -> tokens) from a file."""
        text = json.dumps(codes)
        path = self.folder / f"{zlib.crc32(text.encode())}.index.json"
        path.write_text(text)
        return {"builder": "file", "path": str(path), **settings}

    def context(self, scale="tiny", validate=lambda method, users=0: 0.5) -> Context:
        torch.manual_seed(0)
        return Context(0, "cpu", scale, Checkpoint(None), ArtefactCache(self.folder / "artefacts"), validate)

    def fit(self, method, rows, num_items=4, **context) -> TrainView:
        data = make_data(rows, num_items=num_items)
        self.train = TrainView(data.num_users, data.items, data.sequences)
        method.fit(self.train, self.context(**context))
        return self.train

    def check_saved(self, method, fresh, **context) -> None:
        """``fresh`` answers as ``method`` does once it has loaded what that saved."""
        (self.folder / "saved").mkdir()
        method.save(self.folder / "saved")
        fresh.load(self.folder / "saved", self.train, self.context(**context))
        asked = make_histories([[0, 1], [2], []], users=[0, 5, 0])
        one, other = method.recommend(asked, 4), fresh.recommend(asked, 4)
        assert np.array_equal(one.items, other.items)
        assert np.array_equal(one.scores, other.scores)


@pytest.fixture
def kit(tmp_path) -> Kit:
    return Kit(tmp_path)


def lists(sequences: TokenSequences) -> list[list[int]]:
    return [sequences.tokens[a:b].tolist() for a, b in zip(sequences.offsets[:-1], sequences.offsets[1:], strict=True)]


def tiger(kit: Kit, **config):
    return registry.get("tiger")(registry.configure("tiger", {**SMALL, "index": kit.index(FOUR), **config}))


# --- TIGER ---------------------------------------------------------------------------------------------------------

MODES = [
    {"architecture": "encoder_decoder"},
    *[{"architecture": "decoder_only", "examples": form} for form in ("sequence", "prefix", "padded_prefix")],
]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.get("examples", "encoder_decoder"))
def test_it_answers_with_real_items_and_leaves_seen_ones_out(kit, mode):
    method = tiger(kit, **mode, index=kit.index({**FOUR, "4": ["<a_7>", "<b_9>"]}))
    kit.fit(method, [[0, 1, 2, 3], [3, 0, 1], [2], [4, 1]], num_items=5)
    asked = make_histories([[0, 1, 2, 3], [3], []])
    ranking = method.recommend(asked, 5)
    assert [sorted(row) for row in ranking.items.tolist()] == [[0, 1, 2, 3, 4]] * 3
    assert (np.diff(ranking.scores) <= 0).all()
    masked = method.recommend(type(asked)(asked.users, asked.offsets, asked.items, mask_seen=True), 5)
    assert [sorted(row) for row in masked.items.tolist()] == [[-1, -1, -1, -1, 4], [-1, 0, 1, 2, 4], [0, 1, 2, 3, 4]]
    kit.check_saved(method, tiger(kit, **mode, index=kit.index({**FOUR, "4": ["<a_7>", "<b_9>"]})))


def example_rows(method, train) -> list[tuple[list[int], list[int]]]:
    """What an epoch of TIGER reads and learns: (all tokens, the learned ones) of each example."""
    found = []
    for batch in method._batches(train.sequences, np.random.default_rng(0)):
        if hasattr(batch, "prompts"):
            for prompt, mask, answer, levels in zip(
                batch.prompts, batch.mask, batch.answers, batch.levels, strict=True
            ):
                target = answer[levels != GIVEN].tolist()
                found.append((prompt[mask].tolist() + target, target))
            continue
        width = batch.tokens.shape[1]
        learned = dict(zip(batch.at.tolist(), batch.targets.tolist(), strict=True))
        for row in range(len(batch)):
            for segment in range(1, int(batch.segments[row].max()) + 1):
                places = (batch.segments[row] == segment).nonzero()[:, 0].tolist()
                tokens = batch.tokens[row][places].tolist()
                found.append((tokens, [learned[row * width + p] for p in places if row * width + p in learned]))
    return sorted(found)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.get("examples", "encoder_decoder"))
def test_examples_by_hand(kit, mode):
    """Codes of level a are CODES + 0..255, of level b the next 256."""
    a0, a1, b0, b1 = CODES, CODES + 1, CODES + 256, CODES + 257
    item = [[a0, b0], [a0, b1], [a1, b0], [a1, b1]]
    method = tiger(kit, **mode, epochs=1, max_history=2)
    train = kit.fit(method, [[0, 1, 2], [3], [2, 0]])
    whole = [
        ([START, *item[0], *item[1], *item[2]], [*item[1], *item[2]]),
        ([START, *item[2], *item[0]], item[0]),
    ]
    prefixes = [*whole[1:], ([START, *item[0], *item[1]], item[1]), (whole[0][0], item[2])]
    assert example_rows(method, train) == sorted(whole if mode.get("examples") == "sequence" else prefixes)
    asked = method.prompts(make_histories([[0, 1], []]))  # the start of the example that learns item 2
    assert lists(asked) == [whole[0][0][:-2], [START]]


@pytest.mark.parametrize("architecture", ["encoder_decoder", "decoder_only"])
def test_user_tokens(kit, architecture):
    method = tiger(kit, architecture=architecture, user_buckets=5)
    train = kit.fit(method, [[0, 1], [2, 3, 1], [1, 0]])
    users = np.arange(0, 40_000, 7)
    first = np.array([row[0] for row in lists(method.prompts(make_histories([[]] * len(users), users=users)))])
    assert set(first.tolist()) == set(range(method.first_bucket, method.first_bucket + 5))
    assert np.bincount(first - method.first_bucket).min() > len(users) / 10
    assert method.first_bucket == CODES + 512
    assert method.model.get_input_embeddings().weight.shape[0] == method.first_bucket + 5
    of_training = {row[0] for row, _ in example_rows(method, train)}
    assert of_training == {row[0] for row in lists(method.prompts(make_histories([[]] * 3)))}
    far = method.prompts(make_histories([[]], users=[2**31]))
    assert method.first_bucket <= lists(far)[0][0] < method.first_bucket + 5


def test_a_counter_tells_items_of_one_code_apart(kit):
    codes = {**FOUR, "1": FOUR["0"], "3": FOUR["0"]}
    method = tiger(kit, index=kit.index(codes, collisions="counter", max_collision_rate=1.0))
    kit.fit(method, [[0, 1, 2, 3], [3, 1]])
    assert method.index.num_levels == 3
    assert method.index.codes[:, 2].tolist() == [0, 1, 0, 2]
    assert method.index.num_distinct == 4
    ranking = method.recommend(make_histories([[0]]), 4)
    assert len(set(ranking.scores[0].tolist())) == 4
    shared = tiger(kit, index=kit.index(codes, max_collision_rate=1.0))
    kit.fit(shared, [[0, 1, 2, 3], [3, 1, 3]])
    ranking = shared.recommend(make_histories([[0]]), 4)
    one_code = [item for item in ranking.items[0].tolist() if item != 2]
    assert one_code == [3, 1, 0]  # items of one code by popularity (3 twice and 1 twice: 3 taken thrice)
    assert len(set(ranking.scores[0].tolist())) == 2


@pytest.mark.parametrize("architecture", ["encoder_decoder", "decoder_only"])
def test_gradient_checkpointing_is_switched_on(kit, architecture):
    method, plain = (tiger(kit, architecture=architecture, dropout=0.0, gradient_checkpointing=on) for on in (1, 0))
    kit.fit(method, [[0, 1, 2, 3]])
    assert method.model.is_gradient_checkpointing
    kit.fit(plain, [[0, 1, 2, 3]])
    asked = make_histories([[0, 1]])
    assert np.allclose(method.recommend(asked, 4).scores, plain.recommend(asked, 4).scores, atol=1e-5)


def test_a_training_set_without_pairs(kit):
    """Nothing to learn from: answers all the same."""
    method = tiger(kit)
    kit.fit(method, [[0], [1], []])
    assert sorted(method.recommend(make_histories([[0]]), 4).items[0].tolist()) == [0, 1, 2, 3]


def test_a_poor_index_is_refused_before_the_language_model_learns(kit):
    asked = []
    poor = tiger(kit, index=kit.index({**FOUR, "1": FOUR["0"]}))
    with pytest.raises(PoorIndex, match=r"a collision rate of 25\.0%, above"):
        kit.fit(poor, [[0, 1, 2, 3]], validate=lambda method, users=0: asked.append(method) or 0.5)
    assert asked == []


def test_methods_share_what_comes_before_them(kit):
    """One set of text vectors for all, one index for those that ask for the same, and no more after a change of it."""
    residual = {"builder": "residual", "levels": 2, "codes": 4}
    letter = {"levels": 2, "codes": 4, "hidden": [8], "dim": 4, "epochs": 1, "groups": 2, "behaviour": "svd"}

    def built_after(name: str, index: dict) -> tuple[int, int]:
        method = registry.get(name)(registry.configure(name, {**SMALL, "epochs": 1, "index": index}))
        kit.fit(method, [[0, 1, 2, 3], [3, 0, 1, 2]])
        text, indices = (len(list(kit.folder.glob(f"artefacts/{stage}/*/"))) for stage in ("text_vectors", "index"))
        return text, indices

    assert built_after("tiger", residual) == (1, 1)
    assert built_after("lc_rec", residual) == (1, 1)
    assert built_after("letter_tiger", letter) == (1, 2)
    assert built_after("tiger", {**residual, "codes": 3}) == (1, 3)


@pytest.mark.parametrize("mode", ["sequence", "prefix", "encoder_decoder"])
def test_over_the_trie_the_probabilities_of_all_items_sum_to_one(kit, mode):
    """For one history, exp(-loss) of each item as the target adds up to 1: with any other set it falls short."""
    how = {"architecture": mode} if mode == "encoder_decoder" else {"architecture": "decoder_only", "examples": mode}
    codes = kit.index({**FOUR, "4": ["<a_1>", "<b_7>"], "5": ["<a_9>", "<b_7>"]})
    method = tiger(kit, loss_over="trie", index=codes, **how)
    kit.fit(method, [[0, 1, 2, 3], [3, 0, 1]], num_items=6)
    histories = [[0, item] for item in range(kit.train.num_items)]
    losses = []
    for row in histories:
        (batch,) = method._batches(make_histories([row]), np.random.default_rng(0))
        with torch.no_grad():
            losses.append(method.loss()(batch).item())
    assert np.exp(-np.array(losses)).sum() == pytest.approx(1.0, abs=1e-4)


# --- learning ------------------------------------------------------------------------------------------------------

INDEX = {"builder": "residual", "levels": 2, "codes": 16}
LEARNING = {
    "bf16": False, "layers": 1, "width": 32, "heads": 2, "feedforward": 64, "learning_rate": 5e-3, "dropout": 0.1,
    "max_history": 8, "averaging": 0.9, "epochs": 12, "validate_every": 99, "batch_tokens": 2048, "index": INDEX,
}  # fmt: skip


@pytest.fixture(scope="module")
def learnable(tmp_path_factory):
    """``ndcg(name, **config)`` on data with something to learn."""
    data = synthetic.generate(num_users=200, num_items=60, seed=5)
    split, kit = leave_one_out(data), Kit(tmp_path_factory.mktemp("kit"))

    def ndcg(name: str, **config) -> float:
        method = registry.get(name)(registry.configure(name, config))
        method.fit(split.train, kit.context())
        return selection_value(Full(), evaluate(method, split.test, Full(), 60).ranks)

    return ndcg("popularity"), ndcg


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("tiger", {"architecture": "decoder_only"}),
        (
            "tiger",
            {
                "rows": 48,
                "epochs": 10,
                "learning_rate": 1e-2,
                "max_history": 4,
                "dropout": 0.0,
                "index": {**INDEX, "levels": 1, "codes": 60},
            },
        ),
        ("lc_rec", {"text_examples": 100}),
        (
            "p5_cid",
            {
                "architecture": "decoder_only",
                "epochs": 60,
                "index": {"clusters": 4, "cluster_limit": 12},
                "user_buckets": 0,
            },
        ),
    ],
    ids=["decoder_only", "encoder_decoder", "lc_rec", "p5_cid"],
)
def test_learned_methods_beat_popularity(learnable, name, config):
    popularity, ndcg = learnable
    assert ndcg(name, **{**LEARNING, **config}) > 1.5 * popularity


# --- bad input, suites ---------------------------------------------------------------------------------------------


def test_one_clear_line_for_what_cannot_work(kit):
    with pytest.raises(InputError, match=r"gone\.json does not exist: an index file is needed$"):
        kit.fit(tiger(kit, index={"builder": "file", "path": str(kit.folder / "gone.json")}), [[0, 1]])
    with pytest.raises(InputError, match=r"has no code for 1 items, such as '3'"):
        kit.fit(tiger(kit, index=kit.index({key: FOUR[key] for key in "012"})), [[0, 1]])
    (kit.folder / "broken.json").write_text("{")
    with pytest.raises(InputError, match=r"broken\.json is not usable JSON"):
        kit.fit(tiger(kit, index={"builder": "file", "path": str(kit.folder / "broken.json")}), [[0, 1]])
    for values, message in (
        ({"architecture": "decoder_only", "heads": 3}, r"^tiger: heads=3 must divide width=128$"),
        ({"index": {"bilder": "rqvae"}}, r"Unknown setting of tiger\.index 'bilder'\. Did you mean: builder"),
        ({"index": {"builder": "file"}}, r"path is for builder=file, which needs one"),
        ({"temperature": 0}, r"tiger\.temperature = 0"),
        ({"loss_over": "everything"}, r"tiger\.loss_over = 'everything'"),
        ({"user_buckets": -1}, r"tiger\.user_buckets = -1"),
    ):
        with pytest.raises(InputError, match=message):
            registry.configure("tiger", values)
    with pytest.raises(InputError, match=r"must be a multiple of twice heads=16"):
        kit.fit(tiger(kit, architecture="decoder_only", heads=16), [[0, 1]])


def test_suites_of_the_language_model_tiers():
    """Configured, not run: the base tier's models are adapted by LoRA, and the papers' values stand in the other."""
    base = {cell.label: cell for cell in cells(read_suite(ROOT / "suites" / "generative_base.yaml"))}
    assert {cell.scale for cell in base.values()} == {"base"}
    assert {cell.dataset for cell in base.values()} == {"ml-100k"}
    assert set(base) == {"lc_rec", "letter_lc_rec", "tiger", "letter_tiger"}
    assert all(base[name].config.lora.r >= 8 for name in ("lc_rec", "letter_lc_rec"))

    paper = {cell.label: cell.config for cell in cells(read_suite(ROOT / "suites" / "generative_paper.yaml"))}
    assert set(paper) == {"tiger", "letter_tiger", "lc_rec", "letter_lc_rec", "p5_cid"}
    assert all(config.max_history == 20 and config.beam == 20 for config in paper.values())
    assert all(config.loss_over == "vocabulary" for config in paper.values())
    lc_rec, letter, cid, tigers = paper["lc_rec"], paper["letter_lc_rec"], paper["p5_cid"], paper["tiger"]
    assert (lc_rec.learning_rate, lc_rec.weight_decay, lc_rec.warmup, lc_rec.epochs) == (5e-5, 0.01, 0.01, 4)
    assert (lc_rec.lora, lc_rec.examples, len(lc_rec.tasks)) == (None, "prefix", 6)
    assert (letter.lora.r, letter.lora.alpha, letter.learning_rate, letter.tasks) == (8, 32, 1e-4, ("sequence",))
    assert (cid.learning_rate, cid.epochs, cid.rows) == (1e-3, 20, 64)
    assert (tigers.layers, tigers.width, tigers.heads, tigers.feedforward) == (4, 128, 6, 1024)
    assert (tigers.index.levels, tigers.index.collisions, tigers.user_buckets) == (3, "counter", 2000)


# --- docs/generative.md --------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "generative.md").read_text()


def test_the_page_s_method_of_ones_own_works(kit):
    (kit.folder / "gpt_rec.py").write_text(PAGE.split("```python\n")[1].split("```")[0])
    registry.load_plugin(kit.folder / "gpt_rec.py")

    def make():
        values = {"bf16": False, "width": 16, "epochs": 2, "index": kit.index(FOUR)}
        return registry.get("gpt_rec")(registry.configure("gpt_rec", values))

    method = make()
    kit.fit(method, [[0, 1, 2, 3], [3, 0, 1]])
    assert sorted(method.recommend(make_histories([[0, 1]]), 4).items[0].tolist()) == [0, 1, 2, 3]
    kit.check_saved(method, make())


def test_the_page_s_settings_are_settings():
    runs = [line.partition("  #")[0] for line in PAGE.splitlines() if line.startswith("genrec-bench run")]
    assert len(runs) >= 10
    for words in map(shlex.split, runs):
        for path in (word for word in words if word.endswith(".yaml")):
            assert read_suite(ROOT / path).methods
        pairs = [after for before, after in pairwise(words) if before == "--set"]
        for name, values in parse_settings(pairs).items():
            assert name in words
            registry.configure(name, values)
