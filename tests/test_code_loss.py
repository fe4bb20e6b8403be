"""The loss over codes, by hand: what a code competes with, and the same sum as the models' own loss."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from genrec_bench.methods.indexing.index import ItemIndex, level_tokens

pytest.importorskip("transformers")

from test_generative import lists

from genrec_bench.methods.decoding.causal import CausalTokens
from genrec_bench.methods.decoding.seq2seq import Seq2SeqTokens
from genrec_bench.methods.decoding.trie import ItemTrie
from genrec_bench.methods.language.backbone import tiny_llama, tiny_t5
from genrec_bench.methods.language.batches import packed_batches, pair_batches
from genrec_bench.methods.language.codes import CodeLoss, ItemTokens
from genrec_bench.methods.language.sequences import GIVEN, TEXT, TokenSequences

END_ID = 2


class Table(nn.Module):
    """A "language model" whose hidden state after token t is row t of a table of logits."""

    class Out:
        def __init__(self, states):
            self.last_hidden_state = states

    def __init__(self, size: int):
        super().__init__()
        self.logits = nn.Parameter(torch.randn(size, size, generator=torch.Generator().manual_seed(3)))
        self.dtype = torch.float32

    def get_decoder(self):
        return lambda input_ids, **more: self.Out(self.logits[input_ids])


class Reading:
    """The adapter of `Table`."""

    def __init__(self, model, ids=slice(None)):
        self.ids = ids

    def among(self, tokens):
        return Reading(None, tokens)

    def logits(self, hidden, tokens):
        of_ids = hidden[..., self.ids]
        return of_ids if tokens is None else of_ids[..., tokens]


def code_loss(model, codes, over="level", temperature=1.0, adapter=Reading):
    """Codes of level one are ids 10.., of level two 20..."""
    index = ItemIndex(np.array(codes), level_tokens([2, 3]))
    items = ItemTokens.of(index, [torch.tensor([11, 10]), torch.tensor([20, 21, 22])], END_ID)
    trie = ItemTrie.from_index(index, np.arange(len(codes)))
    return CodeLoss(model, adapter, trie, items, over, temperature), items


def batch_of(rows: list[list[tuple[int, int]]]):
    """One packed batch of sequences of (token, level)."""
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    flat = np.array([pair for row in rows for pair in row])
    sequences = TokenSequences(offsets, flat[:, 0].astype(np.int32), flat[:, 1].astype(np.int8))
    (batch,) = packed_batches(sequences, 8, 1000, 0, np.random.default_rng(0))
    return batch


def one(logits, chosen: int):
    """Cross-entropy of one row of logits."""
    return cross_entropy(logits[None], torch.tensor([chosen]))


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_a_code_competes_with_the_codes_of_its_level(temperature):
    model = Table(30)
    loss, _ = code_loss(model, [[0, 0], [0, 2], [1, 1]], temperature=temperature)
    batch = batch_of([[(1, GIVEN), (10, 0), (22, 1)], [(5, GIVEN), (11, 0), (20, 1)], [(1, GIVEN), (7, TEXT)]])
    logits = model.logits / temperature
    by_hand = (
        one(logits[1, [11, 10]], 1) + one(logits[10, [20, 21, 22]], 2)
        + one(logits[5, [11, 10]], 0) + one(logits[11, [20, 21, 22]], 0)
        + one(logits[1], 7)  # text competes with everything
    )  # fmt: skip
    assert loss(batch).item() == pytest.approx(by_hand.item(), rel=1e-5)
    everything, _ = code_loss(model, [[0, 0], [0, 2], [1, 1]], "vocabulary", temperature)
    by_hand = sum(one(logits[before], token) for before, token in [(1, 10), (10, 22), (5, 11), (11, 20), (1, 7)])
    assert everything(batch).item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_the_end_competes_where_codes_vary_in_length():
    model = Table(30)
    batch = batch_of([[(1, GIVEN), (10, 0), (END_ID, 1)], [(1, GIVEN), (10, 0), (21, 1)]])
    loss, items = code_loss(model, [[0, 0], [1, -1], [1, 1]])
    assert items.ids.tolist() == [[11, 20], [10, END_ID], [10, 21]]
    first, second = model.logits[1, [11, 10]], model.logits[10, [20, 21, 22, END_ID]]
    by_hand = 2 * one(first, 1) + one(second, 3) + one(second, 1)
    assert loss(batch).item() == pytest.approx(by_hand.item(), rel=1e-5)
    loss(batch).backward()
    assert set(model.logits.grad[1].nonzero()[:, 0].tolist()) == {10, 11}  # never the end on the first level
    assert set(model.logits.grad[10].nonzero()[:, 0].tolist()) == {END_ID, 20, 21, 22}


def test_over_the_trie_a_code_competes_with_what_leads_to_items():
    model = Table(30)
    batch = batch_of(
        [[(1, GIVEN), (10, 0), (END_ID, 1)], [(1, GIVEN), (10, 0), (21, 1)], [(1, GIVEN), (11, 0), (20, 1)]]
    )
    loss, _ = code_loss(model, [[0, 0], [1, -1], [1, 1]], "trie")
    first, second = model.logits[1, [11, 10]], model.logits[10, [21, END_ID]]  # nothing but 20 follows 11: no choice
    by_hand = 2 * one(first, 1) + one(first, 0) + one(second, 1) + one(second, 0)
    assert loss(batch).item() == pytest.approx(by_hand.item(), rel=1e-5)
    one_item, _ = code_loss(model, [[1, 1]], "trie")
    assert one_item(batch_of([[(1, GIVEN), (10, 0), (21, 1)]])).item() == 0.0


def test_a_low_temperature_weighs_hard_negatives_more():
    """LETTER, section 3.3: of the push against wrong codes, a larger share falls on the likeliest."""

    def push(temperature):
        model = Table(30)
        with torch.no_grad():
            model.logits[10, 20:23] = torch.tensor([1.0, 0.0, -1.0])
        loss, _ = code_loss(model, [[0, 0], [1, 1], [1, 2]], temperature=temperature)
        loss(batch_of([[(1, GIVEN), (10, GIVEN), (22, 1)]])).backward()
        hard, easy = model.logits.grad[10, 20:22].tolist()
        return hard / easy

    assert push(0.5) > push(1.0) > push(2.0) > 1
    assert push(1.0) == pytest.approx(np.e, rel=1e-4)


def test_over_the_vocabulary_it_is_the_loss_of_transformers():
    """Packed rows and pairs give the sum that the models' own ``labels`` give, sequence by sequence."""
    rng = np.random.default_rng(0)
    rows = [[(1, GIVEN), *[(int(t), 0) for t in rng.integers(10, 30, size)]] for size in (3, 5, 2)]
    model = tiny_llama(30, layers=2, dim=16, heads=2, feedforward=32)
    ours, _ = code_loss(model, [[0, 0], [0, 2], [1, 1]], "vocabulary", adapter=CausalTokens)
    theirs = 0.0
    for row in rows:
        tokens, levels = torch.tensor(row).T
        labels = torch.where(levels == GIVEN, -100, tokens)
        theirs += model(tokens[None], labels=labels[None]).loss.item() * (len(row) - 1)
    assert ours(batch_of(rows)).item() == pytest.approx(theirs, rel=1e-5)

    model = tiny_t5(30, layers=1, dim=16, heads=2, feedforward=32)
    ours, _ = code_loss(model, [[0, 0], [0, 2], [1, 1]], "vocabulary", adapter=Seq2SeqTokens)
    prompts, answers = TokenSequences.of([[1, 5, 6], [1, 7]]), TokenSequences.of([[10, 21], [11, 20]], 0)
    (batch,) = pair_batches(prompts, answers, model.config.decoder_start_token_id, 10, 0, rng)
    theirs = sum(
        model(torch.tensor([prompt]), labels=torch.tensor([answer])).loss.item() * 2
        for prompt, answer in zip(lists(prompts), lists(answers), strict=True)
    )
    assert ours(batch).item() == pytest.approx(theirs, rel=1e-5)
