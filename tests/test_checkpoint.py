"""Training state: whole or absent, exact, and a damaged file only costs the work it held."""

import time

import pytest
import torch

from genrec_bench.methods.checkpoint import Checkpoint

STATE = {"weights": {"a": torch.arange(3.0)}, "epoch": 4, "name": "x", "losses": [1.0, 0.5]}


def test_round_trip_with_the_random_state(tmp_path):
    checkpoint = Checkpoint(tmp_path / "run")
    torch.manual_seed(5)
    torch.rand(3)
    checkpoint.save(STATE)
    expected = torch.rand(4)
    torch.manual_seed(99)
    state = Checkpoint(tmp_path / "run").load()
    assert torch.equal(torch.rand(4), expected)
    assert torch.equal(state["weights"]["a"], torch.arange(3.0))
    assert {key: state[key] for key in ("epoch", "name", "losses")} == {"epoch": 4, "name": "x", "losses": [1.0, 0.5]}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["training.pt"]


def test_nothing_saved_yet(tmp_path):
    assert Checkpoint(tmp_path / "run").load() is None
    assert not (tmp_path / "run").exists()


def test_without_a_folder_nothing_is_kept():
    checkpoint = Checkpoint(None, every_s=0.0)
    checkpoint.save(STATE)
    assert not checkpoint.due()
    assert checkpoint.load() is None


def test_due_only_after_a_while(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    checkpoint = Checkpoint(tmp_path, every_s=10.0)
    assert not checkpoint.due()
    now[0] = 110.0
    assert checkpoint.due()
    checkpoint.save({})
    assert not checkpoint.due()


def test_elapsed_time_counts_all_attempts(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    first = Checkpoint(tmp_path)
    now[0] = 7.0
    first.save({})
    now[0] = 9.0  # two seconds of work that the kill costs
    second = Checkpoint(tmp_path)
    now[0] = 50.0  # reading the data counts for nothing
    second.load()
    now[0] = 53.0
    assert second.elapsed_s == pytest.approx(10.0)


def test_seconds_of_a_stage_count_once(tmp_path, monkeypatch):
    """A stage of 5 seconds, then training that is killed twice after 2."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for attempt in range(3):
        training = Checkpoint(tmp_path)
        stage = training.beside("stage")
        if stage.load() is None:
            now[0] += 5.0
            stage.save({})
        training.load()
        now[0] += 2.0
        assert training.elapsed_s == pytest.approx(5.0 + 2.0 * (attempt + 1))
        training.save({})


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"no checkpoint at all",
        lambda content: content[:200] + bytes(200) + content[400:],
        lambda content: content.replace(b"torch_rng", b"tarch_rng"),
    ],
    ids=["cut off", "empty", "garbage", "holes", "other content"],
)
def test_a_damaged_file_is_as_good_as_none(tmp_path, damage):
    """Training starts from scratch, with the random state as it was, and saves over the damaged file."""
    Checkpoint(tmp_path).save(STATE)
    path = tmp_path / "training.pt"
    path.write_bytes(damage(path.read_bytes()))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.load() is None
    assert torch.equal(torch.get_rng_state(), before)
    assert checkpoint.elapsed_s < 5
    checkpoint.save(STATE)
    assert Checkpoint(tmp_path).load()["epoch"] == 4


def test_pickled_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save(
        {"state": Evil(), "torch_rng": torch.get_rng_state(), "cuda_rng": [], "elapsed_s": 0.0},
        tmp_path / "training.pt",
    )
    assert Checkpoint(tmp_path).load() is None
    assert not (tmp_path / "ran").exists()


def test_a_save_that_fails_keeps_the_one_before(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save(STATE)

    def full(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save({**STATE, "epoch": 5})
    assert Checkpoint(tmp_path).load()["epoch"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["training.pt"]
