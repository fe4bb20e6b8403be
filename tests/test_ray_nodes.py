"""Two Ray nodes with folders of their own: what is computed on one comes home to the other, also when one is lost."""

import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_interruption import SLOW, epochs_of
from test_ray_engine import contents
from test_runner import grid_of
from test_runner import run as run_locally

from genrec_bench.benchmark import records
from genrec_bench.benchmark.progress import Progress

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
from ray.cluster_utils import Cluster  # noqa: E402 - after the skip

from genrec_bench.benchmark import ray_engine  # noqa: E402

HIDES = """
import sys

def hide(event, arguments):
    if event.startswith(("open", "os.", "shutil.")):
        for path in arguments[:1]:
            if str(path).startswith(HIDDEN):
                raise FileNotFoundError(f"{path} is on another machine")

sys.addaudithook(hide)
"""


class Nodes:
    """The command's machine, which computes nothing, and others with homes of their own that see none of ``hidden``."""

    def __init__(self, folder: Path, hidden: Sequence[Path]) -> None:
        self.folder = folder
        (folder / "hides").mkdir()
        code = HIDES.replace("HIDDEN", repr(tuple(map(str, hidden))))
        (folder / "hides" / "sitecustomize.py").write_text(code)
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.homes: list[Path] = []
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="ERROR")

    def add(self, cpus: int = 2, gpus: int = 0, **theirs: str) -> Any:
        self.homes.append(self.folder / f"node{len(self.homes)}")
        hides = os.pathsep.join([str(self.folder / "hides"), os.environ.get("PYTHONPATH", "")])
        theirs |= {"GENREC_BENCH_HOME": str(self.homes[-1]), "PYTHONPATH": hides}
        return self.cluster.add_node(num_cpus=cpus, num_gpus=gpus, env_vars=theirs)


@pytest.fixture
def nodes(tmp_path: Path, home: Path) -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ray_engine.QUIET.items():
            patch.setenv(name, value)
        made = Nodes(tmp_path, [home, tmp_path / "home-of-the-command", tmp_path / "results"])
        yield made
        ray.shutdown()
        made.cluster.shutdown()


SHARES = """
import os
import time
from pathlib import Path

import numpy as np

from genrec_bench.methods.base import MethodConfig
from genrec_bench.methods.popularity import Popularity
from genrec_bench.methods.registry import register


class SharesConfig(MethodConfig):
    power: float = 1.0


@register("shares")
class Shares(Popularity):
    \"\"\"Popularity to some power; the counts are an artefact that all of them share.\"\"\"

    Config = SharesConfig

    def fit(self, train, context):
        def build(folder):
            with open(FOLDER + "/built", "a") as file:
                print(folder, file=file)
            time.sleep(2)  # the other machine comes, and waits
            np.save(folder / "counts.npy", train.item_counts())

        names = ("CUDA_VISIBLE_DEVICES", "GENREC_BENCH_API_KEY", "GENREC_BENCH_API_URL")
        seen = [os.environ.get(name) for name in names]
        try:
            seen += os.listdir(COMMAND)
        except FileNotFoundError:
            pass
        with open(FOLDER + "/seen", "a") as file:
            print(seen, file=file)
        folder = context.artefacts.get("counts", {"items": train.num_items}, build)
        self.popularity = (np.load(folder / "counts.npy") ** self.config.power).astype(np.float32)
"""


def test_records_and_artefacts_come_home(nodes, stored, tmp_path, home, monkeypatch):
    monkeypatch.setenv("GENREC_BENCH_API_KEY", "a key")
    for _ in range(2):  # machines whose Ray hides no GPUs, and that had variables of their own
        nodes.add(
            cpus=1, CUDA_VISIBLE_DEVICES="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0", GENREC_BENCH_API_URL="theirs"
        )
    code = SHARES.replace("FOLDER", repr(str(tmp_path))).replace("COMMAND", repr(str(home)))
    (tmp_path / "shares.py").write_text(code)
    methods = [{"method": "shares", "label": f"power {power}", "config": {"power": power}} for power in (1.0, 0.5, 2.0)]
    grid = {"plugins": [str(tmp_path / "shares.py")], "protocols": ["full", "cand20"]}
    results = tmp_path / "results"
    outcome = ray_engine.run_on_ray(grid_of(methods, **grid), results, Progress(quiet=True), keep_models=True)
    assert (outcome.done, outcome.failed) == (6, {})
    for theirs in nodes.homes:
        assert (theirs / "datasets" / "tiny" / "dataset.json").exists()  # fetched
        assert list(theirs.glob("artefacts/counts/*/counts.npy"))  # built there, or fetched
        assert not list((theirs / "ray" / "finished").rglob("run.json"))  # delivered
    assert {path.name for path in (home / "models").iterdir()} == set(outcome.run_ids)
    assert len((tmp_path / "built").read_text().splitlines()) == 1
    assert len(list((home / "artefacts" / "counts").glob("*/counts.npy"))) == 1
    # no GPU, the command's own variables, none of its folders
    assert set((tmp_path / "seen").read_text().splitlines()) == {str(["", "a key", None])}
    assert not [path for path in results.rglob("*") if path.is_file() and b"a key" in path.read_bytes()]
    run_locally(tmp_path / "local", methods, **grid)
    assert contents(results) == contents(tmp_path / "local")


def test_a_lost_machines_cells_move_with_their_checkpoints(nodes, stored, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW.replace("FOLDER", repr(str(tmp_path))))
    (tmp_path / "hold").touch()
    machines = [nodes.add(), nodes.add()]
    moved: list[str] = []

    def lose_the_one_at_work() -> None:
        deadline = time.monotonic() + 120
        home = tmp_path / "home-of-the-command"
        while not list(home.glob("runs/*/training.pt")) or len(epochs_of(tmp_path)) < 3:
            if time.monotonic() > deadline:
                return
            time.sleep(0.1)
        (at_work,) = (number for number, home in enumerate(nodes.homes) if list(home.glob("runs/*/training.pt")))
        cell = psutil.Process(epochs_of(tmp_path)[-1][0])
        lost = [cell.parent(), cell]  # the one that watches first: it would start the cell again
        for process in lost:
            process.suspend()  # a lost machine computes nothing more
        nodes.cluster.remove_node(machines[at_work], allow_graceful=False)
        for process in lost:
            process.kill()
        (tmp_path / "hold").unlink()
        moved.append("yes")

    with pytest.MonkeyPatch.context() as patch:
        own = tmp_path / "home-of-the-command"
        Path(ray_engine.store.home()).rename(own)
        patch.setenv("GENREC_BENCH_HOME", str(own))
        thread = threading.Thread(target=lose_the_one_at_work, daemon=True)
        thread.start()
        grid = grid_of(["slow"], plugins=[str(tmp_path / "slow.py")])
        outcome = ray_engine.run_on_ray(grid, tmp_path / "results", Progress(quiet=True))
        thread.join()
        assert moved == ["yes"]
        assert (outcome.done, outcome.failed) == (1, {})
        epochs = [epoch for _, epoch in epochs_of(tmp_path)]
        assert epochs.count(1) == 1  # it went on, elsewhere, from the checkpoint that had come home
        assert epochs[-1] == 6
        assert len({pid for pid, _ in epochs_of(tmp_path)}) == 2
        run_locally(tmp_path / "undisturbed", ["slow"], plugins=[str(tmp_path / "slow.py")])
    ranks = [
        records.read_ranks(records.run_folder(folder, "tiny", "slow", outcome.run_ids[0]))[1].tolist()
        for folder in (tmp_path / "results", tmp_path / "undisturbed")
    ]
    assert ranks[0] == ranks[1]


FOUR = """
import os
import time
from pathlib import Path

from genrec_bench.methods.popularity import Popularity
from genrec_bench.methods.registry import register


@register("four")
class Four(Popularity):
    \"\"\"Ends when four of it are at work.\"\"\"

    def fit(self, train, context):
        Path(FOLDER, f"gpu-{os.getpid()}").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
        until = time.monotonic() + 120
        while len(list(Path(FOLDER).glob("gpu-*"))) < 4:
            assert time.monotonic() < until, "the others do not come"
            time.sleep(0.05)
        super().fit(train, context)
"""


def test_cells_share_a_gpu(nodes, stored, tmp_path, monkeypatch):
    """A pretended one."""
    with monkeypatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "0")
        nodes.add(cpus=4, gpus=1)
    (tmp_path / "four.py").write_text(FOUR.replace("FOLDER", repr(str(tmp_path))))
    grid = grid_of(["four", "markov"], plugins=[str(tmp_path / "four.py")], seeds=[0, 1, 2, 3])
    asked = {"four": {"gpus": 0.25, "cpus": 1}, "markov": {"gpus": 2}}
    outcome = ray_engine.run_on_ray(grid, tmp_path / "results", Progress(quiet=True), resources=asked)
    assert outcome.done == 4
    assert [path.read_text() for path in tmp_path.glob("gpu-*")] == ["0"] * 4
    assert set(outcome.failed.values()) == {
        "no machine is large enough: it asks for CPU 1, GPU 2, at most there is CPU 4, GPU 1"
    }
    assert all("markov" in cell for cell in outcome.failed)


def test_several_processes_on_a_machine_with_a_home_of_its_own(nodes, stored, tmp_path):
    nodes.add()
    tiger = {"method": "tiger", "config": {"epochs": 1}}
    outcome = ray_engine.run_on_ray(
        grid_of([tiger]), tmp_path / "results", Progress(quiet=True), resources={"tiger": {"processes": 2}}
    )
    (reason,) = outcome.failed.values()
    assert re.match(rf"its 2 processes need one folder, and machine .* works in {nodes.homes[0]}, not in ", reason)


WAITS = """
import os
import time
from pathlib import Path

from genrec_bench.methods.popularity import Popularity
from genrec_bench.methods.registry import register


@register("waits")
class Waits(Popularity):
    def fit(self, train, context):
        Path(FOLDER, "at-work").write_text(str(os.getpid()))
        time.sleep(600)
"""


def test_the_last_machine_that_could_hold_a_cell_is_lost(nodes, stored, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ray_engine, "LOOK_EVERY_S", 0.2)
    monkeypatch.setattr(ray_engine, "WAIT_S", 3.0)
    nodes.add(cpus=1)
    large = nodes.add(cpus=2)
    (tmp_path / "waits.py").write_text(WAITS.replace("FOLDER", repr(str(tmp_path))))

    def lose_it() -> None:
        until = time.monotonic() + 120
        while not (tmp_path / "at-work").exists() and time.monotonic() < until:
            time.sleep(0.1)
        nodes.cluster.remove_node(large, allow_graceful=False)

    thread = threading.Thread(target=lose_it, daemon=True)
    thread.start()
    grid = grid_of(["waits", "popularity", "markov"], plugins=[str(tmp_path / "waits.py")])
    outcome = ray_engine.run_on_ray(grid, tmp_path / "results", Progress(), 120.0, resources={"waits": {"cpus": 2}})
    thread.join()
    assert outcome.done == 2
    reason = "no machine is large enough: it asks for CPU 2, at most there is CPU 1"
    assert list(outcome.failed.values()) == [f"{reason}, for 0.05 minutes"]
    assert capsys.readouterr().err.count(f"waits for a machine: {reason}\n") == 1
