"""Whether a grid that is killed again and again ends in the same records as one that is left alone.

    .venv/bin/python benchmarks/kill_and_resume.py [--generative] [--kills 20] [--seed 0] [--longest S] [--keep DIR]

Two methods x two data sets x three seeds (with ``--generative``: two methods on MovieLens-100K that train an RQ-VAE, a
SASRec for LETTER's alignment and a language model, and decode) run once undisturbed. Then the same command runs in
another home and another results folder, is killed with SIGKILL after a random time, is started again at once, and so on
``--kills`` times; then it runs to its end. Only the command itself is killed: its children have to notice. A checkpoint
is written every 10 s, so the long cells are killed before, between and after checkpoints.

Compared, record by record: run ids, metrics, slices, list metrics and validation values bit by bit, the tables of ranks
and of rankings by content. Cells that no kill hit prove nothing, so the cells hit and those that could resume from a
checkpoint are counted. Exit code 1 on any difference, on a child that outlives its command by 15 s, on a cell that
failed, on too few kills, or where no kill came after a checkpoint. Takes 6 to 15 minutes.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import yaml

COMMAND = Path(sys.executable).with_name("genrec-bench")
SUITE: dict[str, Any] = {
    "name": "kill-and-resume",
    "datasets": ["synthetic", "ml-100k"],
    "methods": [
        {"method": "sasrec", "config": {"patience": 1000}},
        {"method": "gru4rec", "config": {"patience": 1000}},
    ],
    "seeds": [0, 1, 2],
}
EPOCHS = {  # half of the cells outlast two checkpoints on an idle core, the others none
    "ml-100k": {"sasrec": 12, "gru4rec": 4},
    "synthetic": {"sasrec": 20, "gru4rec": 150},
}
SMALL: dict[str, Any] = {"architecture": "decoder_only", "layers": 1, "width": 64, "patience": 1000}
GENERATIVE: dict[str, Any] = {
    "name": "kill-and-resume-generative",
    "datasets": ["ml-100k"],
    "methods": [
        {"method": "tiger", "config": {**SMALL, "index": {"levels": 3, "collisions": "sinkhorn"}}},
        {"method": "letter_tiger", "config": {**SMALL, "index": {"levels": 3}}},
    ],
    "seeds": [0, 1],
}
GENERATIVE_EPOCHS = {"ml-100k": {"tiger": 3, "letter_tiger": 3}}
COMPARED = ("metrics", "list_metrics", "slices", "validation", "config", "dataset", "evaluated_users")
GRACE_S = 15.0  # a child may live that long after its command was killed


@dataclass
class Disturbed:
    """What happened to the killed grid."""

    kills: int = 0
    starts: int = 0
    cells_at_kill: list[int] = field(default_factory=list)  # records there when the command was killed
    checkpoints_at_kill: list[int] = field(
        default_factory=list
    )  # unfinished cells with a checkpoint, at the same moment
    interrupted: set[str] = field(default_factory=set)  # run ids of the cells that a kill hit
    resumable: set[str] = field(default_factory=set)  # those of them that had a checkpoint to resume from
    children: list[tuple[float, psutil.Process]] = field(default_factory=list)  # and when their command was killed
    survivors: int = 0

    def note(self, finished: dict[str, Path], runs: Path) -> None:
        """What the kill that just happened has hit."""
        done = {folder.name for folder in finished.values()}
        hit = {folder.name for folder in runs.glob("*/") if folder.name not in done}
        saved = {name for name in hit if (runs / name / "training.pt").exists()}
        self.cells_at_kill.append(len(finished))
        self.checkpoints_at_kill.append(len(saved))
        self.interrupted |= hit
        self.resumable |= saved

    def count_survivors(self) -> None:
        """Add up the children of killed commands that lived past their grace."""
        for killed, child in self.children:
            while lives(child) and time.monotonic() < killed + GRACE_S:
                time.sleep(0.1)
            self.survivors += lives(child)


def lives(process: psutil.Process) -> bool:
    """Whether it runs: a zombie that nobody has reaped does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def start(suite: Path, home: Path, results: Path) -> subprocess.Popen[bytes]:
    """The grid's command, in a home and a results folder of its own."""
    environment = {**os.environ, "GENREC_BENCH_HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [COMMAND, "run", suite, "--results", results, "--quiet"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for the grid's end; a failed cell ends the comparison."""
    if process.wait():
        raise SystemExit(f"genrec-bench run ended with exit code {process.returncode}")


def disturb(suite: Path, home: Path, results: Path, kills: int, longest: float, rng: random.Random) -> Disturbed:
    """Run the grid, killed ``kills`` times, to its end."""
    story = Disturbed()
    while story.kills < kills:
        process = start(suite, home, results)
        story.starts += 1
        try:
            process.wait(rng.uniform(0.5, longest))
        except subprocess.TimeoutExpired:
            children = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
            story.kills += 1
            story.children += [(time.monotonic(), child) for child in children]
            story.note(records_in(results), home / "runs")
            continue
        finish(process)
        break  # the grid was done before all kills
    finish(start(suite, home, results))
    story.starts += 1
    story.count_survivors()
    return story


def records_in(results: Path) -> dict[str, Path]:
    """Folder of each finished record, by its path below ``results``."""
    return {str(path.parent.relative_to(results)): path.parent for path in results.glob("*/*/*/run.json")}


def differences(left: Path, right: Path, keys: Sequence[str] = COMPARED) -> list[str]:
    """What differs between two records that should be the same run: of ``keys``, ranks and rankings."""
    one, other = (json.loads((folder / "run.json").read_text()) for folder in (left, right))
    found = [f"{key}: {one[key]} != {other[key]}" for key in keys if one[key] != other[key]]
    for name in ("ranks.parquet", "rankings.parquet"):
        if not pd.read_parquet(left / name).equals(pd.read_parquet(right / name)):
            found.append(f"{name}: other content")
    return [f"{left.parent.parent.name}/{left.parent.name} seed {one['seed']}: {line[:200]}" for line in found]


def compare(undisturbed: Path, killed: Path, keys: Sequence[str] = COMPARED) -> tuple[int, list[str]]:
    """Number of cells compared, and one line for each difference."""
    ours, theirs = records_in(undisturbed), records_in(killed)
    found = [f"{name}: only in one of the two" for name in sorted(ours.keys() ^ theirs.keys())]
    found += [f"{path.relative_to(killed)}: a cell failed" for path in killed.glob("*/*/*.failed.json")]
    both = sorted(ours.keys() & theirs.keys())
    for name in both:
        found += differences(ours[name], theirs[name], keys)
    return len(both), found


def write_suite(folder: Path, scale: float, generative: bool) -> Path:
    """The suite file; ``scale`` stretches all epochs."""
    suite, epochs_of = (GENERATIVE, GENERATIVE_EPOCHS) if generative else (SUITE, EPOCHS)
    epochs = {
        dataset: {method: {"epochs": max(round(count * scale), 1)} for method, count in of_set.items()}
        for dataset, of_set in epochs_of.items()
    }
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump({**suite, "tuned": epochs}))
    return path


def run(folder: Path, options: argparse.Namespace) -> int:
    """Both grids and the comparison; the number of faults."""
    suite = write_suite(folder, options.scale, options.generative)
    home, killed_home = folder / "home", folder / "killed-home"
    for name in yaml.safe_load(suite.read_text())["datasets"]:
        prepare = [COMMAND, "data", "prepare", name]
        subprocess.run(
            prepare, env={**os.environ, "GENREC_BENCH_HOME": str(home)}, stdout=subprocess.DEVNULL, check=True
        )
    shutil.copytree(home / "datasets", killed_home / "datasets")
    started = time.monotonic()
    finish(start(suite, home, folder / "results"))
    alone_s = time.monotonic() - started
    rng = random.Random(options.seed)
    # shorter than a checkpoint's interval would let no long cell advance
    longest = options.longest or max(20.0, 3 * alone_s / options.kills)
    story = disturb(suite, killed_home, folder / "killed-results", options.kills, longest, rng)
    disturbed_s = time.monotonic() - started - alone_s
    cells, found = compare(folder / "results", folder / "killed-results")
    print(
        f"undisturbed: {alone_s:.0f} s; killed {story.kills} times, started {story.starts} times: {disturbed_s:.0f} s"
    )
    print(f"records at each kill: {' '.join(map(str, story.cells_at_kill))}")
    print(f"checkpoints at each kill: {' '.join(map(str, story.checkpoints_at_kill))}")
    print(f"cells hit by a kill: {len(story.interrupted)}, with a checkpoint to resume from: {len(story.resumable)}")
    print(f"children that outlived a killed command by {GRACE_S:g} s: {story.survivors} of {len(story.children)}")
    print(f"cells compared: {cells} of {len(records_in(folder / 'results'))}, differences: {len(found)}")
    for line in found:
        print(f"  {line}")
    if story.kills < options.kills or not story.resumable:
        print("too few kills, or none after a checkpoint: raise --scale")
        return 1 + len(found) + story.survivors
    return len(found) + story.survivors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generative", action="store_true", help="methods with an index and a language model")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument(
        "--longest", type=float, help="seconds from a start to its kill, at most (default: spreads kills over the grid)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--scale", type=float, default=1.0, help="stretches the epochs, for faster or slower machines")
    parser.add_argument("--keep", type=Path, help="empty folder for both homes and results, kept for inspection")
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir(parents=True)
        faults = run(options.keep.resolve(), options)
    else:
        with tempfile.TemporaryDirectory(prefix="kill-and-resume-") as folder:
            faults = run(Path(folder), options)
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
