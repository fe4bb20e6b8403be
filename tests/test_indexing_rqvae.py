"""RQ-VAE and LETTER: learning, exact resuming, what stops them, and their losses by hand."""

import math

import numpy as np
import pytest
import torch

from genrec_bench.methods.checkpoint import Checkpoint
from genrec_bench.methods.indexing.config import IndexConfig
from genrec_bench.methods.indexing.letter import alignment_loss, code_groups, diversity_loss
from genrec_bench.methods.indexing.rqvae import RQVAE, rqvae_codes

SMALL = IndexConfig(levels=3, codes=16, hidden=(32, 16), dim=8, epochs=6, batch=64)


def vectors(items=200, dim=12):
    rng = np.random.default_rng(0)
    return (rng.normal(size=(20, dim))[rng.integers(0, 20, items)] + 0.3 * rng.normal(size=(items, dim))).astype(
        np.float32
    )


def behaviour(items=200, dim=8):
    return np.random.default_rng(1).normal(size=(items, dim)).astype(np.float32)


class Killed(Exception):
    pass


class KilledAfter(Checkpoint):
    """Stops training right after the given number of saves, as a kill would."""

    def __init__(self, folder, saves):
        super().__init__(folder, every_s=0.0)
        self.saves = saves

    def save(self, state):
        super().save(state)
        self.saves -= 1
        if not self.saves:
            raise Killed


def same(one, other):
    return (
        (one.codes == other.codes).all()
        and torch.equal(one.residuals, other.residuals)
        and torch.equal(one.codebook, other.codebook)
        and one.reconstruction_error == other.reconstruction_error
    )


@pytest.mark.parametrize("with_behaviour", [False, True], ids=["rqvae", "letter"])
def test_a_killed_run_ends_as_an_undisturbed_one(with_behaviour, tmp_path):
    aligned = behaviour() if with_behaviour else None
    undisturbed = rqvae_codes(vectors(), aligned, SMALL, Checkpoint(None))
    torch.rand(7)  # what others drew before must not matter
    for saves in (2, 3):
        with pytest.raises(Killed):
            rqvae_codes(vectors(), aligned, SMALL, KilledAfter(tmp_path, saves))
        torch.rand(5)
    resumed = rqvae_codes(vectors(), aligned, SMALL, Checkpoint(tmp_path))
    assert same(undisturbed, resumed)
    other_seed = rqvae_codes(vectors(), aligned, SMALL.model_copy(update={"seed": 1}), Checkpoint(None))
    assert not same(undisturbed, other_seed)


def test_training_lowers_the_error_and_uses_the_codebooks():
    short = rqvae_codes(vectors(), None, SMALL.model_copy(update={"epochs": 1}), Checkpoint(None))
    config = SMALL.model_copy(update={"epochs": 60, "learning_rate": 3e-3})
    events = []
    long = rqvae_codes(vectors(), None, config, Checkpoint(None), log=lambda **values: events.append(values))
    assert long.codes.shape == (200, 3)
    assert long.reconstruction_error < 0.6 < short.reconstruction_error
    assert all(len(np.unique(column)) >= 12 for column in long.codes.T)
    assert [event["epoch"] for event in events] == list(range(6, 61, 6))
    assert events[-1]["reconstruction"] < events[0]["reconstruction"]


def test_alignment_pulls_codes_towards_behaviour():
    """Behaviour has two groups, of which text holds a faint trace: with a heavy alignment, first codes follow it."""
    text = np.random.default_rng(2).normal(size=(120, 12)).astype(np.float32)
    groups = np.arange(120) % 2
    text[:, 0] = 0.5 * groups
    aligned = np.where(groups[:, None] == 1, 2.0, -2.0) * np.ones((120, 8)) + 0.01 * behaviour(120)
    shared = {}
    for alpha in (0.0, 5.0):
        config = SMALL.model_copy(update={"alpha": alpha, "epochs": 60, "learning_rate": 3e-3})
        first = rqvae_codes(text, aligned.astype(np.float32), config, Checkpoint(None)).codes[:, 0]
        counts = np.array([[(first[groups == g] == code).sum() for code in range(16)] for g in (0, 1)])
        shared[alpha] = counts.min(0).sum() / 120  # items whose first code serves the other group better
    assert shared[5.0] < 0.25 < 0.3 < shared[0.0]


def test_a_loss_that_is_not_finite_stops_with_the_step():
    poisoned = vectors()
    config = SMALL.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(FloatingPointError, match=r"rqvae index: loss is not finite at step \d+ of epoch 1"):
        rqvae_codes(poisoned, None, config, Checkpoint(None))
    poisoned[3, 3] = np.nan
    with pytest.raises(ValueError, match="item 3"):
        rqvae_codes(poisoned, None, SMALL, Checkpoint(None))


def test_codes_that_nobody_has_come_back(monkeypatch):
    def collapsed(model, scaled, generator):
        model.codebooks.data.fill_(1e3)
        model.codebooks.data[:, 0] = 0.0

    monkeypatch.setattr(RQVAE, "start_codebooks", collapsed)
    codes = rqvae_codes(vectors(), None, SMALL, Checkpoint(None)).codes
    assert len(np.unique(codes[:, 0])) >= 8


def test_fewer_items_than_codes():
    quantised = rqvae_codes(vectors(9), None, SMALL, Checkpoint(None))
    assert quantised.codes.max() < 9


def test_uniform_last_level_uses_codes_alike():
    model = RQVAE(12, 16, SMALL)
    model.start_codebooks(torch.from_numpy(vectors()), torch.Generator().manual_seed(0))
    latent = model.encoder(torch.from_numpy(vectors(64)))
    greedy, _, _ = model.quantise(latent, uniform_last=False)
    uniform, chosen, residuals = model.quantise(latent, uniform_last=True)
    assert torch.equal(greedy[:, :2], uniform[:, :2])
    counts = [torch.bincount(codes[:, 2], minlength=16) for codes in (greedy, uniform)]
    assert counts[1].max() < counts[0].max()
    assert torch.allclose(residuals[0] - chosen[0], residuals[1])


def test_alignment_by_hand():
    quantised, of_items = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2))) / 2
    assert float(alignment_loss(quantised, of_items)) == pytest.approx(expected)


def test_diversity_by_hand():
    codebook = torch.tensor([[1.0], [2.0], [4.0]])
    groups = torch.tensor([[0, 0, 1]])
    codes = torch.tensor([[0], [2]])  # code 2 is alone in its group: no target
    generator = torch.Generator().manual_seed(0)
    loss = diversity_loss(codebook[codes[:, 0]][None], codes, codebook[None], groups, generator)
    # code 0 looks at codes 1 and 2 with logits 2 and 4; its mate is 1
    assert float(loss) == pytest.approx(math.log(1 + math.exp(2)))
    alone = diversity_loss(codebook[codes[1:, 0]][None], codes[1:], codebook[None], groups, generator)
    assert float(alone) == 0.0


def test_code_groups_are_limited():
    codebooks = torch.zeros(2, 40, 4)
    codebooks[:, 20:] = torch.randn(2, 20, 4, generator=torch.Generator().manual_seed(0))
    sizes = [
        torch.bincount(level, minlength=10) for level in code_groups(codebooks, 10, torch.Generator().manual_seed(0))
    ]
    assert all(level.max() <= 8 for level in sizes)
