"""Several processes that train one cell for Ray Train, each of them seen without a Ray."""

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_runner import grid_of
from torch import distributed

from genrec_bench.benchmark import desk, models
from genrec_bench.benchmark import execute as executing
from genrec_bench.benchmark.attempt import job_of
from genrec_bench.benchmark.execute import run_id
from genrec_bench.benchmark.process import Work
from genrec_bench.datasets import store
from genrec_bench.methods.base import Resources

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
from genrec_bench.benchmark import ray_worker  # noqa: E402 - after the skip


class Noting(desk.Desk):
    """Keeps what comes home, of which only one folder can be at a time in one process."""

    def deliver(self, dataset, method, run_id, tree, model=None):
        self.delivered = (run_id, tree, model)


@pytest.fixture
def together(stored, tmp_path, monkeypatch):
    """What one of a cell's processes is given, on a machine that sees the command's home in another place."""
    monkeypatch.setenv("GENREC_BENCH_API_KEY", "theirs")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(ray_worker, "_Proxy", lambda handle: handle)
    (cell,) = grid_of()
    sha256 = store.load(cell.dataset).sha256
    job = job_of(0, cell, run_id(cell, sha256), sha256, Resources(processes=2))
    environment = {"GENREC_BENCH_HOME": "elsewhere", "GENREC_BENCH_API_KEY": "ours", "CUDA_VISIBLE_DEVICES": ""}
    work = Work(job.cell, Path("elsewhere") / "finished", 1, keep_model=True, environment=environment)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    (store.home() / "mark").touch()
    yield {"work": work, "job": job, "desk": Noting(str(store.home()), str(tmp_path), "mark")}
    distributed.destroy_process_group()


def test_what_several_processes_leave(together):
    work, job = together["work"], together["job"]
    assert ray_worker._one_of_them(together) == ("done", None)
    identity, tree, model = together["desk"].delivered
    assert model is None  # it is in the command's home
    assert identity == job.run_id
    assert f"tiny/popularity/{identity}/run.json" in tree
    assert "kept.json" in desk.read_tree(models.folder(identity))
    assert together["desk"].told(identity)[-1] == {"stage": "rank"}
    assert together["desk"].told(identity) == []
    assert (os.environ["GENREC_BENCH_API_KEY"], os.environ["CUDA_VISIBLE_DEVICES"]) == ("ours", "")
    assert "ours" not in repr(work)  # which Ray Train shows


def test_out_of_memory_in_one_of_several_processes(together, monkeypatch):
    """It waits for no other; when all have been started again, none of them tries the same batch."""

    def no_memory(*everything):
        monkeypatch.setattr(ray_worker.distributed, "agreed", lambda reason: pytest.fail("it waited for the others"))
        raise MemoryError

    monkeypatch.setattr(executing, "execute", no_memory)
    with pytest.raises(MemoryError):
        ray_worker._one_of_them(together)
    monkeypatch.setattr(executing, "execute", lambda *everything: pytest.fail("it was tried again"))
    assert ray_worker._one_of_them(together) == ("memory", "out of memory")


def test_several_processes_need_the_commands_home(together, home, monkeypatch):
    (home / "mark").unlink()
    monkeypatch.setattr(executing, "execute", lambda *everything: pytest.fail("it works in a folder of its own"))
    kind, reason = ray_worker._one_of_them(together)
    assert kind == "failed"
    assert re.fullmatch(r"its \d processes need one folder, and machine .* not in the command's .* share, .*", reason)


class Remote:
    """`ray_worker._fit_together` at work: what it has come to is told when it is asked for."""

    ended: Any = None

    def options(self, **options: Any) -> "Remote":
        return self

    def remote(self, *arguments: Any) -> str:
        return "reference"

    def wait(self, references: list[str], timeout: float) -> tuple[list[str], list[str]]:
        return (references, []) if self.ended else ([], references)


def test_what_the_first_of_them_says_is_heard_before_the_end(together, monkeypatch):
    fit = Remote()
    here = SimpleNamespace(get_node_id=lambda: "0" * 56)
    fake = {"remote": lambda **options: lambda function: fit, "wait": fit.wait, "get": lambda reference: fit.ended}
    monkeypatch.setattr(ray_worker, "ray", SimpleNamespace(**fake, get_runtime_context=lambda: here))
    job = together["job"]
    watched = ray_worker._Together(together["work"], job, {}, together["desk"])
    assert watched.news() is None
    for epoch in (1, 2):
        together["desk"].tell(job.run_id, {"epoch": epoch})
    fit.ended = ("done", None)
    assert [watched.news() for _ in range(3)] == [("event", {"epoch": 1}), ("event", {"epoch": 2}), ("done", None)]
