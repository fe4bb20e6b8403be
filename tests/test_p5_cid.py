"""P5-CID: from scratch on codes of several lengths, and a pre-trained T5 whose prompt is in words."""

from pathlib import Path

import numpy as np
import pytest
from conftest import make_histories
from test_generative import Kit, lists

from genrec_bench.datasets.errors import InputError
from genrec_bench.methods import registry

pytest.importorskip("transformers")

from genrec_bench.methods.language.backbone import tiny_llama, tiny_t5
from genrec_bench.methods.language.vocabulary import word_tokenizer
from genrec_bench.methods.p5_cid import AFTER, BEFORE

SMALL = {"bf16": False, "layers": 1, "width": 16, "heads": 2, "feedforward": 32, "epochs": 2, "max_history": 3}
CODES = {"0": ["<CI 0>", "<CI 1>"], "1": ["<CI 0>", "<CI 2>"], "2": ["<CI 1>"], "3": ["<CI 2>", "<CI 0>", "<CI 1>"]}


@pytest.fixture
def kit(tmp_path) -> Kit:
    return Kit(tmp_path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A T5 as a folder."""
    tokenizer = word_tokenizer([BEFORE.format(user=7), AFTER, ","])
    tiny_t5(len(tokenizer), layers=1, dim=16, heads=2, head_dim=8, feedforward=32).save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    return tmp_path / "t5"


def method_of(kit: Kit, **config):
    return registry.get("p5_cid")(registry.configure("p5_cid", {**SMALL, "index": kit.index(CODES), **config}))


def test_codes_of_several_lengths_end_with_the_end_token(kit):
    """In a history as in a target: otherwise <CI 1> could be the start of a longer code."""
    method = method_of(kit, user_buckets=0)
    kit.fit(method, [[0, 2, 3], [1, 2]])
    end, zero, one, two = method.items.end_id, *(int(method.items.by_level[0][code]) for code in (0, 1, 2))
    assert lists(method.items.learned) == [[zero, one, end], [zero, two, end], [one, end], [two, zero, one]]
    assert method.trie.variable
    ((prompt,),) = (lists(method.prompts(make_histories([[0, 2, 3]]))),)
    assert prompt[1:] == [zero, one, end, one, end, two, zero, one]


@pytest.mark.parametrize("architecture", ["encoder_decoder", "decoder_only"])
def test_collaborative_codes_end_to_end(kit, architecture):
    """Clusters of what is taken together, split until they are small: codes of two and more tokens."""
    rng = np.random.default_rng(0)
    rows = [(rng.permutation(6) + 6 * (user % 4)).tolist() for user in range(16)]
    settings = {"architecture": architecture, "index": {"clusters": 3, "cluster_limit": 4}, "rows": 256, "beam": 25}
    method = method_of(kit, **settings)
    kit.fit(method, rows, num_items=25)  # item 24 is never taken
    assert len(set(method.index.lengths.tolist())) > 1
    ranking = method.recommend(make_histories([[0, 1], [], [24]]), 25)
    assert [sorted(row) for row in ranking.items.tolist()] == [list(range(25))] * 3
    kit.check_saved(method, method_of(kit, **settings))


@pytest.mark.parametrize("scale", ["base", "tiny"])
def test_a_pretrained_t5_reads_the_users_number_and_history_in_words(kit, folder, scale):
    method = method_of(kit, backbone=str(folder))
    kit.fit(method, [[0, 2, 3, 1], [1, 2]], scale=scale)
    histories = make_histories([[0, 2], [1, 0, 2, 3], []], users=[12, 7, 12])
    names = [
        " ".join(method.tokenizer.convert_ids_to_tokens(row))
        for row in lists(method.prompts(histories.last(method.config.max_history)))
    ]
    asked = "user {} has taken , oldest first :"
    assert names == [
        f"{asked.format('1 2')} <CI 0> <CI 1> </s> , <CI 1> </s> , next item :",
        f"{asked.format('7')} <CI 0> <CI 1> </s> , <CI 1> </s> , <CI 2> <CI 0> <CI 1> , next item :",
        f"{asked.format('1 2')} next item :",
    ]
    ranking = method.recommend(histories, 4)
    assert [sorted(row) for row in ranking.items.tolist()] == [[0, 1, 2, 3]] * 3
    kit.check_saved(method, method_of(kit, backbone=str(folder)), scale=scale)


def test_what_is_trained_is_what_is_asked(kit, folder):
    """A training example is the prompt of its history, and the target's code."""
    method = method_of(kit, backbone=str(folder), epochs=1)
    rows = [[0, 2, 3, 1], [1, 2]]
    train = kit.fit(method, rows, scale="base")
    seen = {}
    for batch in method._batches(train.sequences, np.random.default_rng(0)):
        for prompt, mask, answer, levels in zip(batch.prompts, batch.mask, batch.answers, batch.levels, strict=True):
            seen[tuple(prompt[mask].tolist())] = answer[levels >= 0].tolist()
    prefixes = [(0, [0], 2), (0, [0, 2], 3), (0, [0, 2, 3], 1), (1, [1], 2)]
    asked = method.prompts(make_histories([row for _, row, _ in prefixes], users=[user for user, _, _ in prefixes]))
    codes = lists(method.items.learned)
    assert seen == {tuple(p): codes[target] for p, (_, _, target) in zip(lists(asked), prefixes, strict=True)}


def test_clear_refusals(kit, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"^p5_cid: architecture=decoder_only is for tier tiny; a pre-trained T5 has"):
        kit.fit(method_of(kit, architecture="decoder_only"), [[0, 1]], scale="base")
    with pytest.raises(InputError, match=r"^Model 'google-t5/t5-small' is not in the local hub cache"):
        kit.fit(method_of(kit), [[0, 1]], scale="paper")
    tiny_llama(20, layers=1, dim=8, heads=1, feedforward=8).save_pretrained(tmp_path / "llama")
    with pytest.raises(InputError, match=r"is a causal language model \(Llama.*\), but a sequence-to-sequence"):
        kit.fit(method_of(kit, backbone=str(tmp_path / "llama")), [[0, 1]])
    with pytest.raises(InputError, match=r"item '3' must have a list of code tokens"):
        kit.fit(method_of(kit, index=kit.index({**CODES, "3": []})), [[0, 1]])
