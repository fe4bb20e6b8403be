"""EAGER-LLM's contrast against a plain loop, in parts, and what it leaves alone."""

import math

import numpy as np
import pytest
import torch

from genrec_bench.methods.language.batches import Asides
from genrec_bench.methods.language.contrast import GlobalContrast

RNG = np.random.default_rng(0)
TEXT, BEHAVIOUR = RNG.normal(size=(6, 5)), RNG.normal(size=(6, 3))
ITEMS = torch.tensor([2, 0, 2, 5, 2, 1])  # item 2 three times
STATES = torch.from_numpy(RNG.normal(size=(6, 8))).float()


def contrast(lambda_s=0.5, lambda_b=2.0) -> GlobalContrast:
    return GlobalContrast([("text", lambda_s, TEXT), ("behaviour", lambda_b, BEHAVIOUR)], 8, 0.07, seed=0)


def asides(items=ITEMS, pool=ITEMS) -> Asides:
    return Asides(torch.arange(len(items)), items, pool, targets=0)


def cosine(one, other) -> float:
    return float(np.dot(one, other) / np.linalg.norm(one) / np.linalg.norm(other))


def test_against_a_plain_loop():
    """Of the batch's others, those of the same item are no negatives; each of the rest counts as often as it comes."""
    loss = contrast()
    expected = 0.0
    for name, weight, vectors in (("text", 0.5, TEXT), ("behaviour", 2.0, BEHAVIOUR)):
        queries = loss.projectors[name](STATES).detach().numpy()
        for i, item in enumerate(ITEMS.tolist()):
            positive = math.exp(cosine(queries[i], vectors[item]) / 0.07)
            others = [math.exp(cosine(queries[i], vectors[j]) / 0.07) for j in ITEMS.tolist() if j != item]
            expected += weight * -math.log(positive / (positive + sum(others)))
    assert float(loss(STATES, asides())) == pytest.approx(expected, rel=1e-5)


def test_parts_of_a_batch_add_up_to_it():
    """Loss and gradient: the pool is all that micro-batches and devices have to share."""
    loss = contrast()
    whole = torch.autograd.grad(loss(STATES, asides()), loss.parameters(), allow_unused=True)
    total = sum(loss(STATES[part], asides(ITEMS[part], ITEMS)) for part in (slice(0, 2), slice(2, 6)))
    assert float(total) == pytest.approx(float(loss(STATES, asides())), rel=1e-6)
    for one, other in zip(whole, torch.autograd.grad(total, loss.parameters(), allow_unused=True), strict=True):
        assert one is other is None or torch.allclose(one, other, atol=1e-5)


def test_a_batch_of_one_item_has_nothing_to_tell_apart():
    assert float(contrast()(STATES[:2], asides(ITEMS[[0, 2]], ITEMS[[0, 2]]))) == pytest.approx(0.0, abs=1e-6)


def test_precision_does_not_depend_on_autocast():
    """At a temperature of 0.07, products of bf16 would be off by several percent."""
    loss = contrast()
    with torch.autocast("cpu", torch.bfloat16):
        low = float(loss(STATES, asides()))
    assert low == pytest.approx(float(loss(STATES, asides())), rel=1e-5)


def test_vectors_are_constants():
    loss = contrast()
    assert {name.partition(".")[0] for name, _ in loss.named_parameters()} == {"token", "projectors"}
