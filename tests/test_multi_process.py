"""Two processes under torchrun (CPU, gloo) train as one does: the same losses, weights and answers."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

pytest.importorskip("transformers")
pytest.importorskip("peft")

from in_processes import LEFT, RESUMED, TRAININGS, train

from genrec_bench.benchmark import records
from genrec_bench.benchmark.execute import execute
from genrec_bench.benchmark.suite import cells, read_suite


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A command in two processes; one that hangs fails here."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have done every training."""
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(ROOT / "tests" / "in_processes.py", folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def two(left: Path) -> list[dict[str, Any]]:
    """What each of the two made of every training."""
    return [torch.load(left / f"{rank}.pt") for rank in range(2)]


def assert_weights_equal(mine: dict[str, Any], other: dict[str, Any], atol: float) -> None:
    assert mine["weights"].keys() == other["weights"].keys()
    for key, value in other["weights"].items():
        torch.testing.assert_close(
            mine["weights"][key], value, atol=atol, rtol=0, msg=lambda text, k=key: f"{k}: {text}"
        )


@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_train_as_one_does(name, two, tmp_path):
    one = train(name, tmp_path)
    assert len(one["losses"]) > 5
    for mine in (each[name] for each in two):
        assert mine["losses"] == pytest.approx(one["losses"], abs=1e-5)
        assert_weights_equal(mine, one, 1e-5)
        assert mine["validation"] == pytest.approx(one["validation"], abs=0.02)  # a near tie may fall the other way
        torch.testing.assert_close(mine["ranking"], one["ranking"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", RESUMED)
def test_killed_together_they_resume_together(name, two):
    """With dropout, too: its random numbers are those that an undisturbed training draws."""
    for undisturbed, resumed in ((each[name], each[f"{name} resumed"]) for each in two):
        assert 0 < len(resumed["losses"]) < len(undisturbed["losses"])
        assert resumed["losses"] == undisturbed["losses"][-len(resumed["losses"]) :]
        assert_weights_equal(resumed, undisturbed, 0.0)


def test_what_two_processes_began_one_ends(left, two, tmp_path):
    one = train(LEFT, tmp_path, checkpoint=left / LEFT)
    assert one["losses"] == pytest.approx(two[0][LEFT]["losses"][4:], abs=1e-5)
    assert_weights_equal(one, two[0][LEFT], 1e-5)


SMALL = "index: {builder: random}, epochs: 2, dropout: 0.0, bf16: false, layers: 1, width: 32, batch_tokens: 500"
SUITE = f"""
methods:
  - popularity
  - {{method: tiger, config: {{architecture: encoder_decoder, sharding: true, {SMALL}}}}}
  - {{method: tiger, label: decoder, config: {{architecture: decoder_only, {SMALL}}}}}
datasets: [tiny]
time_budget: 1h
"""


def test_the_command_in_two_processes_writes_one_record_a_cell(stored, tmp_path):
    """With a method that cannot share its work, and a cell that fails in both processes: the next one runs."""
    suite = tmp_path / "suite.yaml"
    suite.write_text(SUITE)
    done = torchrun("-m", "genrec_bench.benchmark.cli", "run", suite, f"--results={tmp_path / 'two'}")
    assert done.returncode == 1, done.stderr[-4000:]  # a cell of the table is empty
    assert done.stderr.count("2 run, 0 already there, 1 failed") == 1  # rank 0 alone speaks
    assert done.stderr.count("Under torchrun runs go one after the other, and have no time budget") == 1
    assert done.stdout.count("popularity") == 1
    (failure,), _ = records.read_failures(tmp_path / "two")
    assert "sharding=true needs a decoder-only model" in failure.reason

    popularity, _, decoder = cells(read_suite(suite))
    for cell in (popularity, decoder):
        execute(cell, tmp_path / "one", lambda event: None, threads=1)
    found = [{one.label: one for one in records.read_all(tmp_path / name)[0]} for name in ("one", "two")]
    assert found[0]["popularity"].metrics == found[1]["popularity"].metrics
    one, two = (records_of["decoder"] for records_of in found)
    assert one.run_id == two.run_id
    for name, metric in one.metrics.items():
        assert two.metrics[name].mean == pytest.approx(metric.mean, abs=0.02), name  # a near tie may fall the other way
    assert two.validation.value == pytest.approx(one.validation.value, abs=0.02)
    assert two.cost.parameters == one.cost.parameters
    assert two.cost.hardware == f"2 x {one.cost.hardware}"


ALONE = """
import os, sys
from datetime import timedelta
from torch import distributed as processes
from genrec_bench.methods import distributed

distributed.FAILURE_WAITS = timedelta(seconds=1)
with distributed.joined():
    if distributed.rank() != int(sys.argv[1]):
        processes.barrier()  # in the middle of the work, where the other never comes
    try:
        distributed.agreed("boom")
    except RuntimeError as error:
        print(error, flush=True)
        os._exit(1)
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_fails_alone_does_not_wait_for_the_others(rank, tmp_path):
    (tmp_path / "alone.py").write_text(ALONE)
    done = torchrun(tmp_path / "alone.py", rank)
    assert done.returncode != 0
    assert f"process {rank} of 2 failed alone: boom" in done.stdout
