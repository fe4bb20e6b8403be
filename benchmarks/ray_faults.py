"""Whether a grid on Ray ends in the records of an undisturbed one when its parts are killed with SIGKILL.

    .venv/bin/python benchmarks/ray_faults.py [--kills 20] [--kind worker raylet driver] [--seed 0] [--longest S]

A Ray of two nodes on this machine: the command's, which computes nothing, and one with two workers and a home of its
own. Three kinds of kill, ``--kills`` of each at random moments of a small grid (SASRec, two data sets, three seeds):

    worker   a process below one of the raylets: a trial's watcher, a cell, the server that forks cells, the desk
    raylet   the second node, raylet and all; a new one with an empty home takes its place
    driver   the command; the same command is started again

A grid that ends before the kills are used up is followed by another one, in empty folders. Compared with a grid of the
local engine that nobody disturbed, record by record: ids, metrics, slices, lists, validation bit by bit. A record that
was there at a kill must be the same file afterwards, byte for byte: its time of creation is in it, so nothing that was
finished has been computed again. Exit code 1 on any difference, lost record or failed cell.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from kill_and_resume import COMMAND, compare, lives, records_in
from ray.cluster_utils import Cluster

SUITE: dict[str, Any] = {
    "name": "ray-faults",
    "datasets": ["synthetic", "ml-100k"],
    "methods": [{"method": "sasrec", "config": {"patience": 1000}}],
    "seeds": [0, 1, 2],
}
EPOCHS = {"synthetic": 20, "ml-100k": 6}


@dataclass
class Story:
    """What was killed, and what came of it."""

    kills: int = 0
    grids: int = 0
    starts: int = 0
    compared: int = 0
    faults: list[str] = field(default_factory=list)


class Machines:
    """The simulated cluster; the second node is replaced when it is killed."""

    def __init__(self, folder: Path, cpus: int) -> None:
        self.folder, self.cpus, self.number = folder, cpus, 0
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.second = self.add()

    def add(self) -> Any:
        """A node with an empty home of its own."""
        self.number += 1
        home = self.folder / f"node-{self.number}"
        home.mkdir(parents=True)
        return self.cluster.add_node(num_cpus=self.cpus, env_vars={"GENREC_BENCH_HOME": str(home)})

    def replace(self) -> None:
        """SIGKILL to the second node's processes, and another in its place."""
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = self.add()

    def processes(self) -> Iterator[psutil.Process]:
        """Everything below the raylets but Ray's own agents, with which a raylet ends."""
        for node in self.cluster.list_all_nodes():
            for infos in node.all_processes.get("raylet", []):
                for process in psutil.Process(infos.process.pid).children(recursive=True):
                    name = " ".join(process.cmdline()).strip() if lives(process) else ""
                    if (name.startswith("ray::") or "forkserver" in name) and not name.endswith("Agent"):
                        yield process


def start(suite: Path, place: Path, address: str) -> subprocess.Popen[bytes]:
    """The command, on the simulated cluster."""
    command = [COMMAND, "run", suite, "--engine", "ray", "--address", address, "--jobs", "2", "--quiet"]
    environment = {**os.environ, "GENREC_BENCH_HOME": str(place / "home"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "--results", place / "results"], env=environment, stdout=subprocess.DEVNULL
    )  # fmt: skip


def contents(results: Path) -> dict[str, bytes]:
    """Each finished record's own file."""
    return {name: (folder / "run.json").read_bytes() for name, folder in records_in(results).items()}


def strike(kind: str, machines: Machines, process: subprocess.Popen[bytes], rng: random.Random) -> bool:
    """One kill; False where there was nothing to kill."""
    if kind == "driver":
        process.kill()
        process.wait()
    elif kind == "raylet":
        machines.replace()
    else:
        victims = list(machines.processes())
        if not victims:
            return False
        rng.choice(victims).kill()
    return True


def disturb(kind: str, suite: Path, folder: Path, options: argparse.Namespace, machines: Machines) -> Story:
    """Grids, one after the other, until all kills of a kind are used up and the last grid has ended."""
    story, rng = Story(), random.Random(f"{options.seed} {kind}")
    while story.kills < options.kills:
        story.grids += 1
        place = folder / f"{kind}-{story.grids}"
        shutil.copytree(folder / "alone" / "home" / "datasets", place / "home" / "datasets")
        process, before = start(suite, place, machines.cluster.address), dict[str, bytes]()
        story.starts += 1
        while True:
            try:
                more = story.kills < options.kills
                process.wait(rng.uniform(1.0, options.longest) if more else options.patience)
            except subprocess.TimeoutExpired:
                if story.kills >= options.kills:
                    process.kill()
                    story.faults.append(f"{place.name}: not over {options.patience} s after the last kill")
                    break
                before |= contents(place / "results")
                story.kills += strike(kind, machines, process, rng)
                if kind == "driver":
                    process = start(suite, place, machines.cluster.address)
                    story.starts += 1
                continue
            break
        if process.returncode:
            story.faults.append(f"{place.name}: the command ended with exit code {process.returncode}")
        after = contents(place / "results")
        story.faults += [
            f"{place.name}/{name}: computed again, or lost" for name in before if after.get(name) != before[name]
        ]
        compared, found = compare(folder / "alone" / "results", place / "results")
        story.compared += compared
        story.faults += [f"{place.name}: {line}" for line in found]
    return story


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each kind")
    parser.add_argument("--kind", nargs="+", default=["worker", "raylet", "driver"])
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--longest", type=float, default=30.0, help="seconds to the next kill, at most")
    parser.add_argument("--patience", type=float, default=1200.0, help="seconds for what is left after the last kill")
    parser.add_argument("--scale", type=float, default=1.0, help="stretches the epochs, for faster or slower machines")
    parser.add_argument("--datasets", nargs="+", default=SUITE["datasets"])
    options = parser.parse_args()
    faults = 0
    with tempfile.TemporaryDirectory(prefix="ray-faults-") as temporary:
        folder = Path(temporary)
        suite = folder / "suite.yaml"
        tuned = {name: {"sasrec": {"epochs": max(round(EPOCHS[name] * options.scale), 1)}} for name in options.datasets}
        suite.write_text(yaml.safe_dump({**SUITE, "datasets": options.datasets, "tuned": tuned}))
        environment = {**os.environ, "GENREC_BENCH_HOME": str(folder / "alone" / "home"), "OMP_NUM_THREADS": "1"}
        started = time.monotonic()
        subprocess.run(
            [COMMAND, "run", suite, "--quiet", "--jobs", "2", "--results", folder / "alone" / "results"],
            env=environment, stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        print(f"undisturbed: {time.monotonic() - started:.0f} s", flush=True)
        os.environ.pop("GENREC_BENCH_HOME", None)
        for kind in options.kind:
            machines, started = Machines(folder / kind, cpus=2), time.monotonic()
            story = disturb(kind, suite, folder, options, machines)
            machines.cluster.shutdown()
            print(
                f"{kind}: {story.kills} kills in {story.grids} grids ({story.starts} starts), {story.compared} records "
                f"compared, {len(story.faults)} faults, {time.monotonic() - started:.0f} s",
                flush=True,
            )
            for line in story.faults:
                print(f"  {line}", flush=True)
            faults += len(story.faults)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
