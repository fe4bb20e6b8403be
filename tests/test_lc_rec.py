"""LC-Rec: every task's examples written out on a catalogue of four items, its vocabulary, LoRA, folders, resuming."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_histories, rows_of

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.events import item_table
from genrec_bench.datasets.interactions import TrainView
from genrec_bench.methods import registry
from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.base import Context
from genrec_bench.methods.checkpoint import Checkpoint
from genrec_bench.methods.indexing.files import write_item_index
from genrec_bench.methods.indexing.index import ItemIndex, level_tokens

pytest.importorskip("transformers")

from genrec_bench.methods.language import prompts
from genrec_bench.methods.language.backbone import Backbone, tiny_llama
from genrec_bench.methods.language.codes import ItemTokens, training_prefixes
from genrec_bench.methods.language.examples import ExampleWriter
from genrec_bench.methods.language.sequences import GIVEN, TEXT, TokenSequences
from genrec_bench.methods.language.vocabulary import add_code_tokens, word_tokenizer

TITLES = ["Red lamp", "Blue kettle", "Green novel", "Old saddle"]
CATEGORIES = ["light", "kitchen|light", "books", ""]
TABLE = item_table([f"i{i}" for i in range(4)], TITLES, [""] * 4, CATEGORIES)
INDEX = ItemIndex(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), level_tokens([2, 2]))
CODES = ["<a_0> <b_0>", "<a_0> <b_1>", "<a_1> <b_0>", "<a_1> <b_1>"]
ROWS = [[0, 1, 2, 3], [1], [3, 0]]
WORDINGS = {
    "SEQUENCE": (("history", "next"),), "OPEN_SEQUENCE": (("history", ""),),
    "ITEM_TO_CODE": (("called", "code"),), "CODE_TO_ITEM": (("code", "called"),),
    "TITLES_TO_CODE": (("names", "code"),), "CODES_TO_TITLE": (("history", "name"),),
    "CODE_TO_TITLE": (("code", "title"),), "CODE_TO_DETAILS": (("code", "details"),),
    "CODE_TO_DESCRIPTION": (("code", "described"),),
    "SEARCH": (("wants", "found"),), "PREFERENCE": (("took", "likes"),),
}  # fmt: skip
SMALL = {
    "bf16": False, "layers": 1, "width": 16, "heads": 2, "feedforward": 32,
    "epochs": 2, "max_history": 4, "batch_tokens": 2048, "text_examples": 20,
}  # fmt: skip


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def writer_of(tokenizer, max_history=3, max_text=8, table=TABLE, index=INDEX) -> ExampleWriter:
    model = tiny_llama(len(tokenizer), layers=1, dim=8, heads=1, feedforward=8)
    code_ids = add_code_tokens(Backbone(model, tokenizer, "causal"), index)
    return ExampleWriter(
        tokenizer, table, ItemTokens.of(index, code_ids, tokenizer.eos_token_id), max_history, max_text
    )


@pytest.fixture
def writer(monkeypatch) -> ExampleWriter:
    """One short wording a task, so that an example can be written out."""
    for name, wordings in WORDINGS.items():
        monkeypatch.setattr(prompts, name, wordings)
    words = [word for wordings in WORDINGS.values() for pair in wordings for word in pair]
    return writer_of(word_tokenizer([*words, *TITLES, *CATEGORIES, ","]))


def read(writer: ExampleWriter, examples: TokenSequences) -> list[str]:
    """Examples as text, what is learned in brackets with its level: ``[<a_0> 0]``, ``[lamp text]``."""

    def shown(token: int, level: int) -> str:
        name = writer.tokenizer.convert_ids_to_tokens(int(token))
        return name if level == GIVEN else f"[{name} {'text' if level == TEXT else level}]"

    ends = zip(examples.offsets[:-1], examples.offsets[1:], strict=True)
    return [
        " ".join(shown(t, v) for t, v in zip(examples.tokens[a:b], examples.levels[a:b], strict=True)) for a, b in ends
    ]


def learned(item: int) -> str:
    first, second = CODES[item].split()
    return f"[{first} 0] [{second} 1]"


# --- the six tasks -------------------------------------------------------------------------------------------------


def test_sequence_as_one_example_a_history(writer):
    assert read(writer, writer.sequences(make_histories(ROWS), True, rng())) == [
        f"<s> history {CODES[0]} , {learned(1)} , {learned(2)} , {learned(3)} ,",
        f"<s> history {CODES[3]} , {learned(0)} ,",
    ]


def test_sequence_as_one_example_a_prefix(writer):
    assert read(writer, writer.sequences(make_histories(ROWS), False, rng())) == [
        f"<s> history {CODES[0]} , next {learned(1)}",
        f"<s> history {CODES[0]} , {CODES[1]} , next {learned(2)}",
        f"<s> history {CODES[0]} , {CODES[1]} , {CODES[2]} , next {learned(3)}",
        f"<s> history {CODES[3]} , next {learned(0)}",
    ]


def test_histories_are_cut_to_the_most_recent_items(writer):
    writer.max_history = 1
    histories = make_histories(ROWS)
    assert read(writer, writer.sequences(histories, False, rng()))[2] == f"<s> history {CODES[2]} , next {learned(3)}"
    pairs = read(writer, writer.sequences(histories, True, rng()))
    assert sorted(pairs) == sorted(
        f"<s> history {CODES[a]} , {learned(b)} ," for a, b in ((0, 1), (1, 2), (2, 3), (3, 0))
    )


def test_a_training_sequence_may_be_longer_than_a_history(writer):
    writer.max_history, writer.window = 1, 3
    assert read(writer, writer.sequences(make_histories([[0, 1, 2, 3]]), True, rng())) == [
        f"<s> history {CODES[0]} , {learned(1)} , {learned(2)} , {learned(3)} ,"
    ]


def test_both_forms_of_the_sequence_task_have_the_same_targets(writer):
    histories = make_histories([[0, 1, 2, 3, 0, 2, 1], [3], [2, 0, 1]])

    def targets(open_end: bool) -> list[tuple[int, int]]:
        found = writer.sequences(histories, open_end, rng())
        of_code = found.levels >= 0
        return sorted(zip(found.tokens[of_code].tolist(), found.levels[of_code].tolist(), strict=True))

    assert targets(True) == targets(False)


def test_text_to_code_and_code_to_text(writer):
    """Title alone or with its categories; a title is never glued to what it lacks."""
    ways = {
        0: ("red lamp", "red lamp , light"), 1: ("blue kettle", "blue kettle , kitchen , light"),
        2: ("green novel", "green novel , books"), 3: ("old saddle", "old saddle"),
    }  # fmt: skip
    items = np.arange(4).repeat(20)
    to_code, to_text = (
        read(writer, writer.items_to_codes(items, rng())),
        read(writer, writer.codes_to_items(items, rng())),
    )
    for item in range(4):
        mine = slice(20 * item, 20 * item + 20)
        assert set(to_code[mine]) == {f"<s> called {text} code {learned(item)}" for text in ways[item]}
        assert set(to_text[mine]) == {
            f"<s> code {CODES[item]} called " + " ".join(f"[{word} text]" for word in [*text.split(), "</s>"])
            for text in ways[item]
        }


def test_texts_are_cut(writer):
    short = ExampleWriter(writer.tokenizer, TABLE, writer.items, 3, max_text=3)
    assert set(read(writer, short.codes_to_items(np.repeat(1, 20), rng()))) == {
        f"<s> code {CODES[1]} called [blue text] [kettle text] [</s> text]",
        f"<s> code {CODES[1]} called [blue text] [kettle text] [, text] [</s> text]",
    }
    assert max(len(text.split()) for text in read(writer, short.queries(np.repeat(1, 60), rng()))) <= 1 + 1 + 3 + 1 + 4


def test_fusion_goes_both_ways(writer):
    rows = training_prefixes(make_histories([[0, 1, 2], [3, 0]]), 3)
    assert rows_of(rows) == [[0, 1], [0, 1, 2], [3, 0]]
    assert read(writer, writer.fusion(rows, rng())) == [
        f"<s> names red lamp , code {learned(1)}",
        f"<s> history {CODES[0]} , {CODES[1]} , name [green text] [novel text] [</s> text]",
        f"<s> history {CODES[3]} , name [red text] [lamp text] [</s> text]",
    ]


def test_a_query_is_words_of_the_item(writer):
    words = [
        {"red", "lamp", "light"},
        {"blue", "kettle", "kitchen", "light"},
        {"green", "novel", "books"},
        {"old", "saddle"},
    ]
    seen = [set(), set(), set(), set()]
    for item in range(4):
        for text in read(writer, writer.queries(np.repeat(item, 60), rng())):
            assert text.startswith("<s> wants ")
            query, _, answer = text.removeprefix("<s> wants ").partition(" found ")
            assert answer == learned(item)
            assert len(query.split()) == len(set(query.split())) >= 1
            seen[item] |= set(query.split())
    assert seen == words


def test_preferences_are_of_the_history_alone(writer):
    """Categories counted over the history, never over the target; an item without any lends the words of its title."""
    rows = make_histories([[0, 1, 2], [2, 3, 0], [0, 2]])
    assert read(writer, writer.preferences(rows, rng())) == [
        f"<s> took {CODES[0]} , {CODES[1]} , likes [light text] [, text] [kitchen text] [</s> text]",
        f"<s> took {CODES[2]} , {CODES[3]} , likes [books text] [, text] [old text] [, text] [saddle text] [</s> text]",
        f"<s> took {CODES[0]} , likes [light text] [</s> text]",
    ]


def test_an_epoch_is_what_its_tasks_ask_for(writer):
    histories = make_histories(ROWS)
    sizes = {
        task: len(writer.epoch(histories, {task: 100}, True, rng()))
        for task in ("sequence", "item_to_code", "code_to_item", "fusion", "search", "preference")
    }
    assert sizes == {
        "sequence": 2, "item_to_code": 4, "code_to_item": 4, "fusion": 4, "search": 4, "preference": 4,
    }  # fmt: skip
    assert len(writer.epoch(histories, dict.fromkeys(sizes, 100), False, rng())) == 24
    assert len(writer.epoch(histories, dict.fromkeys(sizes, 3), True, rng())) == 2 + 5 * 3
    nobody = make_histories([[1], [2]])
    assert len(writer.epoch(nobody, dict.fromkeys(sizes, 3), True, rng())) == 3 * 3
    assert len(writer.epoch(histories, {"sequence": 3, "fusion": 0, "search": 1}, True, rng())) == 2 + 1


@pytest.mark.parametrize("open_end", [True, False])
def test_what_is_asked_at_test_is_the_start_of_a_training_example(writer, open_end):
    (asked,) = read(writer, writer.prompt(make_histories([[0, 1, 2]]), open_end))
    examples = read(writer, writer.sequences(make_histories([[0, 1, 2, 3]]), open_end, rng()).given())
    assert asked == f"<s> history {CODES[0]} , {CODES[1]} , {CODES[2]} ," + ("" if open_end else " next")
    assert any(example.startswith(f"{asked} {CODES[3]}") for example in examples)
    assert read(writer, writer.prompt(make_histories([[]]), open_end)) == [
        "<s> history" + ("" if open_end else " next")
    ]


# --- vocabulary ----------------------------------------------------------------------------------------------------


def test_titles_are_text_whatever_they_spell(monkeypatch):
    """A title that spells a special token or a code must not end an example, or name an item."""
    table = item_table(["a", "b"], ["red </s> lamp", "<a_0><b_1>"])
    tokenizer = word_tokenizer(["red lamp called code <>/s_a01b"])
    index = ItemIndex(np.array([[0, 0], [0, 1]]), level_tokens([2, 2]))
    writer = writer_of(tokenizer, table=table, index=index)
    given = {int(t) for t in writer.titles.tokens}
    assert tokenizer.eos_token_id not in given
    assert not given & {int(t) for level in writer.items.by_level for t in level}


@pytest.fixture
def byte_pairs():
    """A tokenizer like SmolLM2's, whose words carry the space before them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=letters, special_tokens=["<s>", "</s>", "<pad>"])
    tokenizer.train_from_iterator([" lamp kettle"] * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def test_pieces_are_spaced_for_tokenizers_whose_words_carry_the_space(monkeypatch, byte_pairs):
    for name, wordings in WORDINGS.items():
        monkeypatch.setattr(prompts, name, wordings)
    writer = writer_of(byte_pairs, max_text=40)

    def texts(examples):
        ends = zip(examples.offsets[:-1], examples.offsets[1:], strict=True)
        return [byte_pairs.decode(examples.tokens[a:b]) for a, b in ends]

    assert set(texts(writer.items_to_codes(np.repeat(0, 9), rng()))) == {
        "<s>called Red lamp code<a_0><b_0>", "<s>called Red lamp, light code<a_0><b_0>",
    }  # fmt: skip
    assert texts(writer.fusion(make_histories([[0, 1, 2], [0, 1, 3]]), rng())) == [
        "<s>names Red lamp, Blue kettle, code<a_1><b_0>",
        "<s>history<a_0><b_0>,<a_0><b_1>, name Old saddle</s>",
    ]
    words = {"Red", "lamp", "light"}
    for text in texts(writer.queries(np.repeat(0, 40), rng())):
        query = text.removeprefix("<s>wants ").removesuffix(" found<a_0><b_0>")
        assert set(query.split(" ")) <= words, "whole words, not pieces of them"


# --- the method ----------------------------------------------------------------------------------------------------


def view(titles=TITLES, rows=ROWS) -> TrainView:
    items = item_table([f"i{i}" for i in range(4)], titles, [""] * 4, CATEGORIES if any(titles) else [""] * 4)
    return TrainView(len(rows), items, make_histories(rows))


@pytest.fixture
def setting(tmp_path):
    """``setting(folder=None, scale="tiny")``: a context; the index is a file in ``tmp_path``."""
    write_item_index(tmp_path / "hand.index.json", INDEX)

    def make(folder: Path | None = None, scale="tiny", validate=lambda method, users=0: 0.5) -> Context:
        torch.manual_seed(0)
        return Context(0, "cpu", scale, Checkpoint(folder, 0.0), ArtefactCache(tmp_path / "artefacts"), validate)

    return make


def method_of(tmp_path, name="lc_rec", **config):
    index = {"builder": "file", "path": str(tmp_path / "hand.index.json"), "min_first_level_use": 0.0}
    return registry.get(name)(registry.configure(name, {**SMALL, "index": index, **config}))


def answers(method):
    ranking = method.recommend(make_histories([[0, 1], [], [3]]), 4)
    assert [sorted(row) for row in ranking.items.tolist()] == [[0, 1, 2, 3]] * 3
    return ranking


def equal(one, other) -> bool:
    return np.array_equal(one.items, other.items) and np.array_equal(one.scores, other.scores)


def test_items_without_titles(tmp_path, setting):
    for name in ("lc_rec", "letter_lc_rec"):
        published = registry.get(name).published_as
        with pytest.raises(InputError, match=rf"^{published}: none of the 4 items has a title.* tasks=\[sequence\]$"):
            method_of(tmp_path, name, tasks=["sequence", "search"]).fit(view([""] * 4), setting())
    method = method_of(tmp_path, tasks=["sequence"])
    method.fit(view([""] * 4), setting())
    answers(method)
    some = method_of(tmp_path)  # one title is enough to go on, and the others are left out of the text tasks
    some.fit(view(["Red lamp", "", "", ""]), setting())
    answers(some)


def test_items_without_text_are_not_described(writer):
    table = TABLE.assign(title=["Red lamp", "", "", ""], categories=["", "", "books", ""])
    bare = ExampleWriter(writer.tokenizer, table, writer.items, 3, 8)
    texts = read(bare, bare.epoch(make_histories(ROWS), {"item_to_code": 100}, True, rng()))
    assert sorted(texts) == [f"<s> called books code {learned(2)}", f"<s> called red lamp code {learned(0)}"]
    queries = read(bare, bare.epoch(make_histories(ROWS), {"search": 100}, True, rng()))
    assert len(queries) == 2
    names = read(bare, bare.fusion(make_histories([[0, 1], [0, 1], [1, 0]]), rng()))
    assert names[1:] == [f"<s> history {CODES[1]} , name [red text] [lamp text] [</s> text]"]


def test_no_word_of_titles_categories_or_wordings_is_unknown(tmp_path, setting):
    method = method_of(tmp_path, epochs=1)
    method.fit(view(), setting())
    examples = method.writer.epoch(make_histories(ROWS), dict.fromkeys(method.config.tasks, 100), False, rng())
    assert method.writer.tokenizer.unk_token_id not in examples.tokens


def test_lora_trains_adapters_and_new_rows_alone(tmp_path, setting):
    pytest.importorskip("peft")
    method = method_of(tmp_path, lora={"r": 2, "alpha": 4.0})
    method.fit(view(), setting())
    before = method_of(tmp_path)
    before._build(method.index, view(), setting())
    start, end = before.model.state_dict(), method.model.get_base_model().state_dict()
    frozen = [name for name in end if name.endswith("base_layer.weight")]
    assert len(frozen) == 7 + 2  # q, k, v, o, gate, up, down; what was there before the new rows, twice by name
    for name in frozen:
        assert torch.equal(end[name], start[name.replace(".token_adapter", "").replace(".base_layer", "")]), name
    trained = {name for name, value in method.model.named_parameters() if value.requires_grad}
    assert all("lora_" in name or "trainable_tokens" in name for name in trained)
    total, learned_numbers = method.parameters()
    assert 0 < learned_numbers < total
    moved = [value for name, value in method.model.named_parameters() if "lora_B" in name]
    assert any(bool(value.any()) for value in moved)  # B starts at 0


def test_lora_is_saved_as_peft_saves_and_loads_to_the_same_answers(tmp_path, setting):
    pytest.importorskip("peft")
    method = method_of(tmp_path, lora={"r": 2})
    method.fit(view(), setting())
    (tmp_path / "saved").mkdir()
    method.save(tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "adapter" / "adapter_config.json").read_text())
    assert (written["peft_type"], written["r"], written["lora_alpha"]) == ("LORA", 2, 32.0)
    loaded = method_of(tmp_path, lora={"r": 2})
    loaded.load(tmp_path / "saved", view(), setting())
    assert equal(answers(method), answers(loaded))
    (tmp_path / "saved" / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"holds no adapter: adapter_model.safetensors is missing$"):
        method_of(tmp_path, lora={"r": 2}).load(tmp_path / "saved", view(), setting())


class Killed(Exception):
    pass


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_killed_and_resumed_it_answers_the_same(tmp_path, setting, lora):
    if lora:
        pytest.importorskip("peft")

    def fit(folder, kill_at=-1):
        calls = iter(range(99))

        def validate(method, users=0):
            if next(calls) == kill_at:
                raise Killed
            return float(sum(value.detach().abs().sum() for value in method.model.parameters())) / 1e6

        method = method_of(tmp_path, lora=lora, epochs=4, batch_tokens=128)
        method.fit(view(), setting(folder, validate=validate))
        return method

    with pytest.raises(Killed):
        fit(tmp_path / "run", kill_at=2)
    assert equal(answers(fit(None)), answers(fit(tmp_path / "run")))


@pytest.fixture
def folder(tmp_path):
    """A causal language model as a folder."""
    words = [part for wordings in prompts.OF_LC_REC for pair in wordings for part in pair]
    tokenizer = word_tokenizer([*words, *TITLES, *CATEGORIES])
    tiny_llama(len(tokenizer), layers=1, dim=16, heads=2, feedforward=32).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(("scale", "lora"), [("base", {"r": 2}), ("paper", None)])
def test_a_folder_as_backbone(tmp_path, folder, setting, scale, lora):
    if lora:
        pytest.importorskip("peft")
    method = method_of(tmp_path, backbone=str(folder), lora=lora, gradient_checkpointing=True)
    method.fit(view(), setting(scale=scale))
    (tmp_path / "saved").mkdir()
    method.save(tmp_path / "saved")
    loaded = method_of(tmp_path, backbone=str(folder), lora=lora)
    loaded.load(tmp_path / "saved", view(), setting(scale=scale))
    assert equal(answers(method), answers(loaded))
    assert loaded.model.config.vocab_size == len(loaded.writer.tokenizer)


def test_backbones_that_cannot_be_used(tmp_path, folder, setting, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, message in (
        (str(tmp_path / "gone"), r"gone: there is no such model folder$"),
        ("nobody/nothing", r"Model 'nobody/nothing' is not in the local hub cache"),
    ):
        with pytest.raises(InputError, match=message):
            method_of(tmp_path, backbone=name).fit(view(), setting())
    (folder / "model.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        method_of(tmp_path, backbone=str(folder)).fit(view(), setting())
    with pytest.raises(InputError, match=r"Model 'huggyllama/llama-7b' is not in the local hub cache"):
        method_of(tmp_path).fit(view(), setting(scale="paper"))


def test_letter_lc_rec_is_lc_rec_on_one_task():
    config = registry.configure("letter_lc_rec", {})
    assert (config.tasks, config.index.builder, config.temperature) == (("sequence",), "letter", 1.0)
    assert registry.get("letter_lc_rec").published_as == "LETTER-LC-Rec"
    with pytest.raises(InputError, match=r"lc_rec\.tasks"):
        registry.configure("lc_rec", {"tasks": []})
    with pytest.raises(InputError, match=r"lc_rec\.tasks"):
        registry.configure("lc_rec", {"tasks": ["dance"]})
    with pytest.raises(InputError, match=r"Unknown setting of lc_rec\.lora 'rank'"):
        registry.configure("lc_rec", {"lora": {"rank": 2}})
