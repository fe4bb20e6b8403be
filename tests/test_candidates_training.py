"""Whole trainings of RSLLM and LLaRA on recommenders' tables, and what moves the projector in them."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_histories
from test_candidates_language import NAMES, SMALL, context, train_view
from test_rsllm import SEQUENCES, fitted, table  # noqa: F401 - a fixture

from genrec_bench.methods import registry
from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.candidates.prompts import LLARA, LLARA_TEXT
from genrec_bench.methods.language.training import _Stepper
from genrec_bench.methods.rsllm import RSLLM


def bytes_of(module):
    return {name: value.detach().numpy().tobytes() for name, value in module.named_parameters()}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return ArtefactCache(tmp_path_factory.mktemp("artefacts"))


@pytest.mark.parametrize("encoder", ["gru4rec", "caser", "sasrec"])
@pytest.mark.parametrize("name", ["rsllm", "llara"])
def test_the_printed_encoders(name, encoder, cache):
    """From the recommender's training to an answer."""
    values = {
        **SMALL, "bf16": False, "encoder": encoder, "encoder_dim": 8, "encoder_settings": {"epochs": 1}, "epochs": 1,
        "batch": 4, "examples": 1, "least_history": 1, "candidates": 5, "decode": "loglik",
    }  # fmt: skip
    method = registry.get(name)(registry.configure(name, values))
    view, events = train_view(rows=SEQUENCES), []
    told = replace(context(), artefacts=cache, log=lambda **event: events.append(event))
    method.fit(view, told)
    (made,) = (event for event in events if event.get("stage") == "item_table")
    assert made["shape"] == [len(NAMES), 8]
    expected = torch.from_numpy(method.item_table(view, told))
    torch.testing.assert_close(method.model.inputs.table, expected / expected.square().mean().sqrt())
    scores = method.choose(make_histories([[0, 1, 2], [5, 4]]), np.array([[3, 4, 6], [0, 1, 8]])).scores
    assert scores.shape == (2, 3)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("name", ["rsllm", "llara"])
def test_the_history_alone_teaches_what_follows(name, table):  # noqa: F811
    """As tier base is taught: lists of titles, whose next line is the answer."""
    values = {
        **SMALL, "bf16": False, "table": table, "template": 6, "vary": False, "decode": "loglik", "normalise": False,
        "history_loss": 1.0, "epochs": 50, "averaging": 0.9, "batch": 6, "examples": 3, "least_history": 1,
        "learning_rate": 0.01, "dropout": 0.0,
    }  # fmt: skip
    values |= {"stage1": {"epochs": 2}, "contrast": {"pool": 4}} if name == "rsllm" else {}
    method, epochs = registry.get(name)(registry.configure(name, values)), itertools.count()
    rising = replace(context(), validate=lambda method, users=0: float(next(epochs)))  # the last weights are kept
    method.fit(train_view(rows=[(0, 1, 2, 3), (4, 5, 6, 7)] * 2), rising)
    chosen = method.choose(make_histories([[0, 1], [4, 5, 6], [0]]), np.array([[3, 6, 2], [1, 7, 3], [7, 1, 6]]))
    assert chosen.picked.tolist() == [2, 1, 1]


def test_a_step_of_text_leaves_the_projector_as_it_was(table, monkeypatch):  # noqa: F811
    """Also after steps with vectors: AdamW's momentum would go on moving what has a gradient of zero."""
    llara, shown, steps = registry.get("llara"), [], []
    pool, step = llara._pool, _Stepper.step

    def watched_pool(self, maker, style, *rest):
        shown.append(style)
        return pool(self, maker, style, *rest)

    def watched_step(self, batch, progress):
        before = bytes_of(self.model.inputs.projector)
        loss = step(self, batch, progress)
        steps.append((set(shown), before == bytes_of(self.model.inputs.projector)))
        shown.clear()
        return loss

    monkeypatch.setattr(llara, "_pool", watched_pool)
    monkeypatch.setattr(_Stepper, "step", watched_step)
    fitted("llara", table=table, epochs=4, patience=99, batch=2, examples=2)
    styles = [style for (style,), _ in steps]
    assert LLARA_TEXT in styles[styles.index(LLARA) :]
    assert [same for _, same in steps] == [style == LLARA_TEXT for style in styles]


def test_the_projector_learns_in_stage_2_alone_and_the_table_never(table, monkeypatch):  # noqa: F811
    seen = []
    learn = RSLLM._learn

    def look(inputs):
        seen.append((bytes_of(inputs.projector), inputs.table.numpy().tobytes()))

    def watched(self, stage, *rest):
        look(self.model.inputs)
        learn(self, stage, *rest)
        look(self.model.inputs)

    monkeypatch.setattr(RSLLM, "_learn", watched)
    fitted("rsllm", table=table, averaging=0.9, stage1={"epochs": 2})
    (start, at_end_of_1, start_of_2, end), tables = [one for one, _ in seen], {two for _, two in seen}
    assert start == at_end_of_1 == start_of_2
    assert all(end[name] != value for name, value in start.items())
    assert len(tables) == 1
