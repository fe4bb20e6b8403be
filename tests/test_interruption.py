"""A command that is stopped, killed, or started twice: nothing is lost, nothing runs on, nothing is done twice."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from test_runner import alive, run

from genrec_bench.benchmark import records
from genrec_bench.datasets import store

SLOW = """
import os, time
import torch
from genrec_bench.methods.popularity import Popularity
from genrec_bench.methods.registry import register


@register("slow")
class Slow(Popularity):
    \"\"\"Six random epochs, each saved and noted; stays in the third while the file `hold` is there.\"\"\"

    def fit(self, train, context):
        saved = context.checkpoint.load() or {"weights": torch.zeros(train.num_items), "epoch": 0}
        weights, epoch = saved["weights"], saved["epoch"]
        while epoch < 6:
            epoch += 1
            weights = weights + torch.rand(train.num_items)
            context.checkpoint.save({"weights": weights, "epoch": epoch})
            with open(FOLDER + "/epochs", "a") as file:
                print(os.getpid(), epoch, file=file)
            time.sleep(0.05)
            while epoch == 3 and os.path.exists(FOLDER + "/hold"):
                time.sleep(0.02)
        self.popularity = weights.numpy()
"""


@pytest.fixture
def slow(stored, tmp_path: Path) -> str:
    path = tmp_path / "slow.py"
    path.write_text(SLOW.replace("FOLDER", repr(str(tmp_path))))
    return str(path)


def start(results: Path, slow: str, *methods: str) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a terminal starts it."""
    arguments = [f"--method={name}" for name in methods]
    return subprocess.Popen(
        [sys.executable, "-m", "genrec_bench.benchmark.cli", "run", *arguments, "--dataset=tiny", "--plugin", slow,
         "--results", str(results)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for(what, command: subprocess.Popen[str], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert command.poll() is None, command.communicate()
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def epochs_of(folder: Path) -> list[tuple[int, int]]:
    path = folder / "epochs"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(pid), int(epoch)) for pid, epoch in map(str.split, lines)]


@pytest.mark.parametrize(
    ("number", "to_group", "code"),
    [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 130), (signal.SIGKILL, False, -9)],
)
def test_stopped_in_the_middle(slow, tmp_path, home, number, to_group, code):
    """Ctrl-C, kill, kill -9: the child ends too, and the same command goes on to what an undisturbed one gives."""
    results, hold = tmp_path / "results", tmp_path / "hold"
    hold.touch()
    command = start(results, slow, "popularity", "slow")
    wait_for(lambda: len(epochs_of(tmp_path)) == 3 and list(results.glob("tiny/popularity/*/run.json")), command)
    (child,) = {pid for pid, _ in epochs_of(tmp_path)}
    assert alive(child)
    finished = next(results.glob("tiny/popularity/*/run.json")).read_bytes()
    (os.killpg if to_group else os.kill)(command.pid, number)
    _, said = command.communicate(timeout=20)
    assert command.returncode == code
    assert "Traceback" not in said
    if code == 130:
        assert f"Stopped by {number.name}: finished runs are recorded; the same command goes on from here" in said
    deadline = time.monotonic() + 5
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(child)
    assert not list(results.glob("tiny/slow/*"))  # neither a record nor a failure

    hold.unlink()
    outcome = run(results, ["popularity", "slow"], plugins=[slow])
    assert (outcome.done, outcome.already) == (1, 1)
    assert [epoch for _, epoch in epochs_of(tmp_path)] == [1, 2, 3, 4, 5, 6]  # resumed, not repeated
    assert next(results.glob("tiny/popularity/*/run.json")).read_bytes() == finished
    assert run(tmp_path / "undisturbed", ["slow"], plugins=[slow]).done == 1
    ranks = [
        records.read_ranks(records.run_folder(folder, "tiny", "slow", outcome.run_ids[1]))[1].tolist()
        for folder in (results, tmp_path / "undisturbed")
    ]
    assert ranks[0] == ranks[1]


def test_stopped_while_the_first_process_starts(slow, tmp_path):
    """The server that cells are forked from is in the terminal's group and still importing: no traceback from it."""
    (tmp_path / "hold").touch()
    command = start(tmp_path / "results", slow, "slow")
    for line in command.stderr:
        if line.startswith("data set tiny"):
            break
    time.sleep(0.3)
    os.killpg(command.pid, signal.SIGINT)
    said = command.communicate(timeout=30)[1]
    assert (command.returncode, "Traceback" in said) == (130, False), said


def test_stopped_before_the_grid_starts(stored, tmp_path, command, monkeypatch):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "load", interrupted)
    code, _, said = command("run", "--method=popularity", "--dataset=tiny", "--results", tmp_path)
    assert code == 130
    assert "Traceback" not in said


def test_two_commands_share_a_grid(slow, tmp_path):
    """Every cell is run by one of them; both end in the whole table."""
    results = tmp_path / "results"
    both = [start(results, slow, "popularity", "slow", "markov") for _ in range(2)]
    said = [command.communicate(timeout=90) for command in both]
    assert [command.returncode for command in both] == [0, 0], said
    assert len({pid for pid, _ in epochs_of(tmp_path)}) == 1
    assert [epoch for _, epoch in epochs_of(tmp_path)] == [1, 2, 3, 4, 5, 6]
    summaries = [err.splitlines()[-1] for _, err in said]
    assert sum(int(line.split()[0]) for line in summaries) == 3
    assert all("0 failed" in line for line in summaries)
    assert said[0][0] == said[1][0]
    assert len(list(results.rglob("run.json"))) == 3
