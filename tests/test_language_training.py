"""The training loop: schedule, accumulation, memory, divergence, resume, and that it learns."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.base import Context
from genrec_bench.methods.checkpoint import Checkpoint
from genrec_bench.methods.language.batches import packed_batches
from genrec_bench.methods.language.sequences import TEXT, TokenSequences
from genrec_bench.methods.language.training import (
    TrainingConfig,
    TrainingDiverged,
    add_dropout,
    schedule,
    train_language_model,
)

SEQUENCES = TokenSequences.of([[1, 5, 6, 7], [1, 6, 7, 5], [1, 7, 5, 6], [1, 5, 6], [1, 6, 7]], TEXT)


class Bigrams(nn.Module):
    """Logits from the token before: enough for the loop, and exact in float32."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(10, 10))
        self.bias = nn.Parameter(torch.zeros(10))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def loss(self, batch):
        logits = self.table[batch.tokens.flatten()[batch.at]] + self.bias
        return nn.functional.cross_entropy(logits, batch.targets, reduction="sum")


def batches(rng):
    return packed_batches(SEQUENCES, 4, 8, 0, rng)


def context(folder=None, validate=lambda method, users=0: 0.5, log=lambda **values: None):
    checkpoint = Checkpoint(folder, every_s=0.0)
    return Context(0, "cpu", "tiny", checkpoint, ArtefactCache("unused"), validate, log)


def trained(config=None, loss=None, ctx=None, model=None):
    torch.manual_seed(0)
    model = model or Bigrams()
    config = config or TrainingConfig(epochs=4, patience=9, bf16=False, learning_rate=0.1, dropout=0.0)
    train_language_model(model, None, batches, loss or model.loss, config, ctx or context())
    return model


def test_it_learns_what_follows_what():
    config = TrainingConfig(epochs=60, patience=99, bf16=False, learning_rate=0.3, averaging=0.0, weight_decay=0.0)
    model = trained(config, ctx=context(validate=rising()))
    assert (model.table + model.bias)[[5, 6, 7]].argmax(1).tolist() == [6, 7, 5]
    assert model.frozen.tolist() == [1, 1, 1]


def rising():
    asked = iter(range(1, 1000))
    return lambda method, users=0: next(asked) / 1000


def test_parts_of_a_step_add_up_to_the_step():
    whole = trained()
    config = TrainingConfig(epochs=4, patience=9, bf16=False, learning_rate=0.1, micro_batches=2)
    assert torch.allclose(whole.table, trained(config).table, atol=1e-6)


def test_bfloat16_weights_learn_as_float32_and_are_bfloat16_again():
    """0.02 is a power of two apart from what a step of 1e-5 adds to it: in bfloat16 nothing would move."""
    model = Bigrams()
    with torch.no_grad():
        model.bias.fill_(0.02)
    low = copy.deepcopy(model).to(torch.bfloat16)
    seen = []

    def loss(batch):
        seen.append(low.bias.detach().clone())
        return low.loss(batch)

    config = TrainingConfig(epochs=4, patience=9, bf16=False, learning_rate=1e-5, weight_decay=0.0, dropout=0.0)
    trained(config, loss, model=low)
    assert {value.dtype for value in seen} == {torch.float32}
    assert (seen[-1] != seen[0]).all()
    assert {value.dtype for value in low.parameters()} == {torch.bfloat16}


def test_a_single_step_is_not_void():
    config = TrainingConfig(epochs=1, bf16=False, learning_rate=0.1, warmup=0.0, min_rate=0.0, averaging=0.0)
    torch.manual_seed(0)
    model = Bigrams()
    whole = lambda rng: iter([next(iter(batches(rng)))])  # noqa: E731
    train_language_model(model, None, whole, model.loss, config, context())
    assert model.table.any()


def test_the_best_epoch_is_kept_and_patience_ends_training():
    scores = iter([0.1, 0.3, 0.2, 0.2, 0.9])
    kept, seen = [], []
    model = Bigrams()

    def validate(method, users=0):
        assert users == 2000
        kept.append(copy.deepcopy(model.state_dict()))
        return next(scores)

    config = TrainingConfig(epochs=9, patience=2, bf16=False, learning_rate=0.1)
    trained(config, model=model, ctx=context(validate=validate, log=lambda **values: seen.append(values)))
    assert [event["validation"] for event in seen] == [0.1, 0.3, 0.2, 0.2]
    assert torch.equal(model.table, kept[1]["table"])


class Killed(Exception):
    pass


@pytest.mark.parametrize("kill_at", [1, 4, 9])
def test_killed_in_the_middle_of_an_epoch_it_resumes_to_the_same_weights(tmp_path, kill_at):
    def run(folder, kill_at=-1):
        model, calls = Bigrams(), iter(range(100))

        def loss(batch):
            if next(calls) == kill_at:
                raise Killed
            return model.loss(batch)

        larger_is_better = context(folder, validate=lambda method, users=0: float(model.table.detach().abs().sum()))
        return trained(ctx=larger_is_better, loss=loss, model=model)

    undisturbed = run(None)
    with pytest.raises(Killed):
        run(tmp_path, kill_at)
    resumed = run(tmp_path)
    assert torch.equal(undisturbed.table, resumed.table)
    assert torch.equal(undisturbed.bias, resumed.bias)


def test_a_loss_that_is_no_number_stops_and_names_the_step(tmp_path):
    model, calls = Bigrams(), iter(range(100))

    def loss(batch):
        return model.loss(batch) * (float("nan") if next(calls) == 5 else 1.0)

    with pytest.raises(TrainingDiverged, match=r"became nan in epoch \d+, step \d+ \(step 6 in all\).*learning_rate"):
        trained(ctx=context(tmp_path), loss=loss, model=model)
    saved = Checkpoint(tmp_path).load()
    assert all(bool(value.isfinite().all()) for value in saved["weights"].values())
    assert saved["progress"]["total_steps"] == 5


def test_out_of_memory_halves_the_batch_once():
    model, notes = Bigrams(), []

    def loss(batch):
        if len(batch) > 1:
            raise torch.OutOfMemoryError("too large")
        return model.loss(batch)

    trained(loss=loss, model=model, ctx=context(log=lambda **values: notes.append(values.get("note"))))
    assert [note for note in notes if note] == ["out of memory: steps are computed in 2 parts from now on"]
    assert torch.allclose(model.table, trained().table, atol=1e-6)

    def never(batch):
        raise torch.OutOfMemoryError("too large")

    with pytest.raises(MemoryError, match="also with half the batch"):
        trained(loss=never, model=Bigrams())


def test_schedule_rises_and_falls():
    config = TrainingConfig(warmup=0.1, min_rate=0.2)
    assert schedule(0.05, config) == pytest.approx(0.5)
    assert schedule(0.1, config) == pytest.approx(1.0)
    assert schedule(0.55, config) == pytest.approx(0.6)
    assert schedule(1.0, config) == schedule(1.5, config) == pytest.approx(0.2)


def test_dropout_in_training_only():
    pytest.importorskip("transformers")
    from genrec_bench.methods.language.backbone import tiny_llama

    model = tiny_llama(20, layers=1, dim=8, heads=1, feedforward=16)
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        before = model(tokens).logits
        add_dropout(model, 0.5)
        assert torch.equal(model(tokens).logits, before)
        model.train()
        assert not torch.allclose(model(tokens).logits, before)


def test_epochs_are_in_another_order_each():
    orders = [
        torch.cat([batch.targets for batch in batches(np.random.default_rng([0, epoch]))]).tolist()
        for epoch in range(3)
    ]
    assert len({tuple(order) for order in orders}) > 1
