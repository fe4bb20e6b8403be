"""bfloat16 products only where the processor has them."""

import pytest
import torch
from test_language_training import context, trained

from genrec_bench.methods import losses, precision
from genrec_bench.methods.language.training import TrainingConfig
from genrec_bench.methods.next_item import NextItemConfig, next_item_loss
from genrec_bench.methods.precision import product_dtype


@pytest.fixture(params=[True, False], ids=["with", "without"])
def processor(request, monkeypatch):
    """A processor with or without such products."""
    precision.product_dtype.cache_clear()
    monkeypatch.setattr(precision, "_has_bfloat16", lambda kind: request.param)
    yield request.param
    precision.product_dtype.cache_clear()


def test_low_precision_is_taken_where_wanted_and_there(processor):
    assert product_dtype(True, "cuda:1") == (torch.bfloat16 if processor else torch.float32)
    assert product_dtype(False, "cuda:1") == torch.float32


def test_the_loop_says_what_it_computes_in(processor):
    seen, said = [], []

    def loss(batch):
        seen.append(torch.is_autocast_enabled("cpu"))
        return model.loss(batch)

    model = trained()  # one to call
    trained(TrainingConfig(epochs=1, dropout=0.0), loss, context(log=lambda **values: said.append(values)), model)
    assert set(seen) == {processor}
    assert any("float32" in event.get("note", "") for event in said) is not processor


def test_the_full_softmax_too(processor, monkeypatch):
    used = []
    monkeypatch.setattr(losses, "full_softmax", lambda hidden, table, targets, dtype: used.append(dtype))
    for low in (True, False):
        config = NextItemConfig(loss="ce", low_precision_loss=low)
        next_item_loss(torch.ones(2, 3), torch.ones(4, 3), torch.tensor([0, 1]), config, None)
    assert used == [torch.bfloat16 if processor else torch.float32, torch.float32]
